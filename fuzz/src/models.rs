//! Configs, safetensors files, their index, and adapters.

use aspo_models::lora::{load_adapter, save_adapter};
use aspo_models::{
    Checkpoint, ClipConfig, InstructBlipConfig, Llama, LlamaConfig, LlavaConfig, ModelConfig, Precision,
};
use burn_flex::Flex;

/// A `config.json` of any of the models: an error, or a config that is written and read as the same.
pub fn config(bytes: &[u8]) {
    fn check<C: ModelConfig + PartialEq + std::fmt::Debug>(json: &serde_json::Value) {
        let Ok(config) = C::from_json(json.clone()) else { return };
        let written = serde_json::to_value(&config).expect("a config is plain data");
        assert_eq!(C::from_json(written).expect("what was written is read"), config);
    }
    let Ok(json) = serde_json::from_slice(bytes) else { return };
    check::<ClipConfig>(&json);
    check::<LlamaConfig>(&json);
    check::<LlavaConfig>(&json);
    check::<InstructBlipConfig>(&json);
}

/// A safetensors file: an error, or tensors that can all be read or refused.
pub fn safetensors(bytes: &[u8]) {
    let folder = scratch();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, bytes).expect("a scratch file");
    if let Ok(checkpoint) = Checkpoint::open(&path) {
        read_all(&checkpoint);
    }
}

/// An index over two sound shards.
pub fn index(bytes: &[u8]) {
    let folder = scratch();
    for (file, tensor) in [("a.safetensors", "x"), ("b.safetensors", "y")] {
        let header = format!(r#"{{"{tensor}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
        let content = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 4]].concat();
        std::fs::write(folder.path().join(file), content).expect("a scratch file");
    }
    std::fs::write(folder.path().join("model.safetensors.index.json"), bytes).expect("a scratch file");
    if let Ok(checkpoint) = Checkpoint::open(folder.path()) {
        read_all(&checkpoint);
    }
}

/// The length of an `adapter_config.json` in two bytes, the config, the weights: an error, or an adapter that is written
/// and read again.
pub fn adapter(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk() else { return };
    let (config, weights) = rest.split_at(rest.len().min(usize::from(u16::from_le_bytes(*length))));
    let folder = scratch();
    std::fs::write(folder.path().join("adapter_config.json"), config).expect("a scratch file");
    std::fs::write(folder.path().join("adapter_model.safetensors"), weights).expect("a scratch file");
    if let Ok((model, adapter)) = load_adapter(tiny(), folder.path()) {
        let again = folder.path().join("again");
        save_adapter(&model, &adapter, &again).expect("an adapter that was read is written");
        load_adapter(tiny(), &again).expect("what was written is read");
    }
}

/// One layer of width 2, its parameters not yet allocated.
fn tiny() -> Llama<Flex> {
    let json = serde_json::json!({
        "model_type": "llama", "vocab_size": 4, "hidden_size": 2, "intermediate_size": 2, "num_hidden_layers": 1,
        "num_attention_heads": 1,
    });
    LlamaConfig::from_json(json).expect("a plain config").init(&Default::default())
}

fn read_all(checkpoint: &Checkpoint) {
    for name in checkpoint.names() {
        let shape = checkpoint.shape(name).expect("a name has a shape");
        if let Ok(data) = checkpoint.read(name, Precision::F32) {
            assert_eq!(data.num_elements(), shape.iter().product::<usize>());
        }
    }
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("a scratch folder")
}
