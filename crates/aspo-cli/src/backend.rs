//! Choosing a backend at run time among those compiled in.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::Failure;

/// A backend of this build; `--features ndarray`, `wgpu` and `cuda` add theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The CPU, by burn-flex.
    #[cfg(feature = "flex")]
    Flex,
    /// The CPU, by burn-ndarray.
    #[cfg(feature = "ndarray")]
    Ndarray,
    /// Any GPU that wgpu reaches.
    #[cfg(feature = "wgpu")]
    Wgpu,
    /// An NVIDIA GPU.
    #[cfg(feature = "cuda")]
    Cuda,
}

/// Those of this build, by name.
const DEVICES: &[(&str, Device)] = &[
    #[cfg(feature = "flex")]
    ("flex", Device::Flex),
    #[cfg(feature = "ndarray")]
    ("ndarray", Device::Ndarray),
    #[cfg(feature = "wgpu")]
    ("wgpu", Device::Wgpu),
    #[cfg(feature = "cuda")]
    ("cuda", Device::Cuda),
];

/// The best of this build.
impl Default for Device {
    fn default() -> Self {
        DEVICES.last().unwrap_or_else(|| unreachable!("a build has at least one backend")).1
    }
}

impl std::str::FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = || DEVICES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        match (DEVICES.iter().find(|(known, _)| *known == name), name) {
            (Some((_, device)), _) => Ok(*device),
            (None, "flex" | "ndarray" | "wgpu" | "cuda") => {
                Err(format!("not in this build, which has {}: build with `--features {name}`", names()))
            }
            (None, _) => Err(format!("no such backend; this build has {}", names())),
        }
    }
}

/// Something to do on whichever backend was chosen.
pub trait OnBackend {
    /// What comes out.
    type Output;

    /// Does it on backend `B`.
    fn run<B: Backend>(self, device: B::Device) -> Self::Output;
}

/// Whether anything can be computed on a device.
struct Probe;

impl OnBackend for Probe {
    type Output = Result<(), String>;

    fn run<B: Backend>(self, device: B::Device) -> Self::Output {
        let told = |panic: Box<dyn std::any::Any + Send>| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
            text.lines().next().unwrap_or_default().to_owned()
        };
        let one = || Tensor::<B, 1>::ones([1], &device).into_data();
        catch_unwind(AssertUnwindSafe(one)).map(drop).map_err(told)
    }
}

impl Device {
    /// Refuses a device that is not there, by one small computation: backends tell of it by a panic, whenever they are first
    /// used.
    ///
    /// # Errors
    /// What the backend says.
    pub fn check(self) -> Result<(), Failure> {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| ()));
        let found = self.run(Probe);
        std::panic::set_hook(hook);
        let name = DEVICES.iter().find(|(_, device)| *device == self).map_or("", |(name, _)| name);
        found.map_err(|why| {
            format!("option `device`: {name} cannot be used here ({why}); give another").into()
        })
    }

    /// Whether weights are best kept in the precision of their file: where the backend computes well in bf16.
    pub fn keeps_precision(self) -> bool {
        match self {
            #[cfg(feature = "cuda")]
            Device::Cuda => true,
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// How many batches are best answered at a time: on a CPU, products of small models keep one core busy.
    pub fn at_a_time(self) -> usize {
        match self {
            #[cfg(feature = "flex")]
            Device::Flex => std::thread::available_parallelism().map_or(1, usize::from),
            #[cfg(feature = "ndarray")]
            Device::Ndarray => std::thread::available_parallelism().map_or(1, usize::from),
            #[allow(unreachable_patterns)]
            _ => 1,
        }
    }

    /// Does `work` on this backend.
    pub fn run<W: OnBackend>(self, work: W) -> W::Output {
        match self {
            #[cfg(feature = "flex")]
            Device::Flex => work.run::<burn_flex::Flex>(Default::default()),
            #[cfg(feature = "ndarray")]
            Device::Ndarray => work.run::<burn_ndarray::NdArray>(Default::default()),
            #[cfg(feature = "wgpu")]
            Device::Wgpu => work.run::<burn::backend::Wgpu<f32, i32>>(Default::default()),
            #[cfg(feature = "cuda")]
            Device::Cuda => work.run::<burn::backend::Cuda<f32, i32>>(Default::default()),
        }
    }
}

/// Prints one line to standard error and ends the process with exit code 1 where `result` is an error.
pub fn exit_on_error<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| {
        crate::note!("error: {}", error.to_string().replace('\n', " "));
        std::process::exit(1)
    })
}
