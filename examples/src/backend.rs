//! Choosing a backend at run time among those compiled in.

use clap::ValueEnum;

/// A backend of this build; `--features ndarray`, `wgpu` and `cuda` add theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
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

/// The best of this build.
impl Default for Device {
    fn default() -> Self {
        *Device::value_variants().last().unwrap_or_else(|| unreachable!("a build has at least one backend"))
    }
}

/// Something to do on whichever backend was chosen.
pub trait OnBackend {
    /// What comes out.
    type Output;

    /// Does it on backend `B`.
    fn run<B: burn::tensor::backend::Backend>(self, device: B::Device) -> Self::Output;
}

impl Device {
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
        eprintln!("error: {}", error.to_string().replace('\n', " "));
        std::process::exit(1)
    })
}
