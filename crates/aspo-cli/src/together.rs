//! Commands that several processes do together: `mpirun -np 4 aspo …`.

use std::time::Duration;

use aspo_train::Ranks;
use burn::tensor::backend::Backend;

use crate::{Failure, out};

/// Does something with the other processes that MPI's launcher has started, if any. The first tells of it; one that fails says
/// so and ends them all.
///
/// # Errors
/// What `job` met; a launcher, in a build without the feature `mpi`.
pub fn together<T>(job: impl FnOnce(&Ranks) -> Result<T, Failure>) -> Result<T, Failure> {
    let ranks = Ranks::started()?;
    if !ranks.is_first() {
        out::be_quiet();
    }
    let done = job(&ranks);
    if let Err(error) = &done
        && ranks.size() > 1
    {
        // What all have met, the first tells; it ends the others, who wait for it nowhere else.
        if !ranks.is_first() {
            std::thread::sleep(Duration::from_secs(2));
        }
        let (rank, text) = (ranks.rank(), error.to_string().replace('\n', " "));
        out::last_words(format_args!("error: rank {rank}: {text}\n"));
        ranks.abort();
    }
    done
}

/// The device of a process: as many behind the chosen one as there are processes before this one on the machine.
///
/// # Errors
/// More processes than devices.
pub fn own_device<B: Backend>(device: B::Device, ranks: &Ranks) -> Result<B::Device, Failure> {
    use burn::tensor::backend::{Device as _, DeviceId};
    let DeviceId { type_id, index_id } = device.to_id();
    let own = B::Device::from_id(DeviceId { type_id, index_id: index_id + ranks.local() as u16 });
    // A CPU is one device whatever its index: several processes share it.
    let there = B::device_count(type_id);
    match own == device || ranks.local() < there {
        true => Ok(own),
        false => {
            let (rank, local) = (ranks.rank(), ranks.local() + 1);
            Err(format!(
                "rank {rank} is number {local} on its machine, which has {there} devices: start fewer there"
            )
            .into())
        }
    }
}
