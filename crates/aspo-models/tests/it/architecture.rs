//! From a folder to the type of its model.

use aspo_models::{
    Architecture, LoadOptions, OnArchitecture, Pretrained, VisionLanguageModel, on_architecture,
};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn_flex::Flex;

use crate::support::fixtures;

/// Loads whatever is there to be trained, and tells its `model_type` and image token, the latter from the plain module.
struct Load(std::path::PathBuf);

impl OnArchitecture for Load {
    type Output = (&'static str, u32);

    fn run<A: Architecture>(self, config: A) -> Self::Output {
        let options = LoadOptions::default();
        let (model, _) = A::Trained::<Flex>::from_pretrained(&self.0, &options, &Default::default()).unwrap();
        assert!(config.text_config().vocab_size > 0 && config.image_size() > 0);
        let trained = VisionLanguageModel::<Autodiff<Flex>>::image_token(&model);
        let plain = model.valid();
        assert_eq!(VisionLanguageModel::<Flex>::image_token(&plain), trained);
        (A::MODEL_TYPE, trained)
    }
}

#[test]
fn a_folder_is_loaded_as_what_its_config_says() {
    let folders = [
        ("llava", "llava", 128),
        ("instructblip", "instructblip", 128),
        ("idefics3", "smolvlm", 341),
        ("smolvlm", "smolvlm", 341),
        ("llava_onevision", "llava_onevision", 303),
    ];
    for (folder, kind, token) in folders {
        let folder = fixtures("models").join(folder);
        assert_eq!(on_architecture(&folder, Load(folder.clone())).unwrap(), (kind, token));
    }
}

#[test]
fn a_model_that_is_not_here_is_named_beside_those_that_are() {
    let folder = fixtures("models/llama");
    let error = on_architecture(&folder, Load(folder.clone())).unwrap_err().to_string();
    assert!(error.contains("`llama`") && error.contains("llava, instructblip"), "{error}");
}
