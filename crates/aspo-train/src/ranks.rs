//! The processes of a run, one a device, over MPI (feature `mpi`): `mpirun -np 4 aspo train …`.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// The processes that run together, by number; without the feature `mpi`, or not started by MPI, this one alone.
///
/// All of them call the same of its methods in the same order.
pub struct Ranks {
    #[cfg(feature = "mpi")]
    world: Option<(mpi::topology::SimpleCommunicator, mpi::environment::Universe)>,
}

impl std::fmt::Debug for Ranks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ranks")
            .field("rank", &self.rank())
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}

/// Variables that MPI's launchers (Open MPI, MPICH, Slurm's PMI-2; Slurm's PMIx beside its own) set to the number of processes, and
/// to this one's number on its machine.
const SIZES: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];
const PMIX: [&str; 2] = ["PMIX_RANK", "SLURM_NTASKS"];
const LOCALS: [&str; 3] = ["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"];

impl Ranks {
    /// This process alone.
    pub fn alone() -> Self {
        Self {
            #[cfg(feature = "mpi")]
            world: None,
        }
    }

    /// Those that MPI's launcher has started with this one; this one alone where none has. To be called once in a process, from
    /// the thread that trains.
    ///
    /// # Errors
    /// A launcher, in a build without the feature `mpi`: each process would be a run of its own.
    pub fn started() -> Result<Self> {
        if !starts_several(|name| std::env::var(name).ok()) {
            return Ok(Self::alone());
        }
        #[cfg(feature = "mpi")]
        {
            use mpi::traits::Communicator as _;
            let Some((universe, _)) = mpi::initialize_with_threading(mpi::Threading::Funneled) else {
                return Err(Error::option(
                    "ranks",
                    "MPI was initialised before",
                    "call `Ranks::started` once",
                ));
            };
            let world = universe.world();
            if world.size() == 1 {
                return Ok(Self { world: None });
            }
            Ok(Self { world: Some((world, universe)) })
        }
        #[cfg(not(feature = "mpi"))]
        {
            let found = "an MPI launcher has started this, but the build has no MPI";
            Err(Error::option(
                "ranks",
                found,
                "build with the feature `mpi`, or start it without the launcher",
            ))
        }
    }

    /// Number of this process, from 0.
    pub fn rank(&self) -> usize {
        #[cfg(feature = "mpi")]
        if let Some((world, _)) = &self.world {
            use mpi::traits::Communicator as _;
            return world.rank() as usize;
        }
        0
    }

    /// Number of processes.
    pub fn size(&self) -> usize {
        #[cfg(feature = "mpi")]
        if let Some((world, _)) = &self.world {
            use mpi::traits::Communicator as _;
            return world.size() as usize;
        }
        1
    }

    /// Whether this is the process that writes files and tells of the run.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Number of this process among those on its machine: that of its device.
    pub fn local(&self) -> usize {
        let told = LOCALS.iter().find_map(|name| std::env::var(name).ok()?.parse().ok());
        told.filter(|_| self.size() > 1).unwrap_or(0)
    }

    /// Ends all processes at once, after what the caller has said.
    pub fn abort(&self) {
        #[cfg(feature = "mpi")]
        if let Some((world, _)) = &self.world {
            use mpi::traits::Communicator as _;
            world.abort(1);
        }
    }

    /// What every process has to say, in their order.
    pub(crate) fn gather<T: Serialize + DeserializeOwned>(&self, own: T) -> Vec<T> {
        #[cfg(feature = "mpi")]
        if let Some((world, _)) = &self.world {
            return over::gather(world, &own);
        }
        vec![own]
    }

    /// The first process's value, on all of them.
    pub fn of_first<T: Serialize + DeserializeOwned>(&self, own: T) -> T {
        self.gather(own).swap_remove(0)
    }

    /// Says something to another process, who [`receive`](Self::receive)s it.
    pub(crate) fn send<T: Serialize>(&self, to: usize, what: &T) {
        #[cfg(feature = "mpi")]
        if let Some((world, _)) = &self.world {
            return over::send(world, to, what);
        }
        let _ = (to, what);
    }

    /// What another process [`send`](Self::send)s next; waits for it.
    ///
    /// # Panics
    /// Alone: there is nobody to wait for.
    pub(crate) fn receive<T: DeserializeOwned>(&self, from: usize) -> T {
        #[cfg(feature = "mpi")]
        if let Some((world, _)) = &self.world {
            return over::receive(world, from);
        }
        unreachable!("process {from} is not there")
    }

    /// Sums numbers over all processes, who end with the same bits; as many on each.
    pub fn sum(&self, values: &mut [f32]) {
        #[cfg(feature = "mpi")]
        if let Some((world, _)) = &self.world {
            over::sum(world, values);
        }
        let _ = values;
    }
}

/// Whether a launcher has started more than one process, by its variables.
fn starts_several(variable: impl Fn(&str) -> Option<String>) -> bool {
    let several =
        |name: &str| variable(name).and_then(|size| size.parse::<usize>().ok()).is_some_and(|size| size > 1);
    let [rank, tasks] = PMIX;
    SIZES.into_iter().any(several) || (variable(rank).is_some() && several(tasks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_is_alone_whoever_started_it() {
        let told = |set: &[(&str, &str)]| {
            starts_several(|name| {
                set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            })
        };
        assert!(!told(&[]) && !told(&[("PMI_SIZE", "1")]) && !told(&[("SLURM_NTASKS", "4")]));
        assert!(!told(&[("PMIX_RANK", "0"), ("SLURM_NTASKS", "1")]));
        assert!(told(&[("OMPI_COMM_WORLD_SIZE", "2")]) && told(&[("PMIX_RANK", "0"), ("SLURM_NTASKS", "2")]));
    }
}

#[cfg(feature = "mpi")]
mod over {
    use mpi::collective::SystemOperation;
    use mpi::datatype::PartitionMut;
    use mpi::topology::SimpleCommunicator;
    use mpi::traits::{Communicator, CommunicatorCollectives, Destination, Root, Source};
    use serde::Serialize;
    use serde::de::DeserializeOwned;

    /// Numbers summed at a time: a message of 16 MiB.
    const PART: usize = 1 << 22;

    pub(super) fn gather<T: Serialize + DeserializeOwned>(world: &SimpleCommunicator, own: &T) -> Vec<T> {
        let own = bytes(own);
        let mut counts = vec![0_i32; world.size() as usize];
        world.all_gather_into(&(own.len() as i32), &mut counts[..]);
        let starts: Vec<i32> = counts
            .iter()
            .scan(0, |start, count| {
                *start += count;
                Some(*start - count)
            })
            .collect();
        let mut all = vec![0_u8; counts.iter().sum::<i32>() as usize];
        {
            let mut parts = PartitionMut::new(&mut all[..], &counts[..], &starts[..]);
            world.all_gather_varcount_into(&own[..], &mut parts);
        }
        let part = |(start, count): (&i32, &i32)| &all[*start as usize..(*start + *count) as usize];
        starts.iter().zip(&counts).map(part).map(read).collect()
    }

    pub(super) fn send<T: Serialize>(world: &SimpleCommunicator, to: usize, what: &T) {
        world.process_at_rank(to as i32).send(&bytes(what)[..]);
    }

    pub(super) fn receive<T: DeserializeOwned>(world: &SimpleCommunicator, from: usize) -> T {
        read(&world.process_at_rank(from as i32).receive_vec::<u8>().0)
    }

    fn bytes<T: Serialize>(value: &T) -> Vec<u8> {
        postcard::to_stdvec(value).expect("plain values have bytes")
    }

    fn read<T: DeserializeOwned>(bytes: &[u8]) -> T {
        postcard::from_bytes(bytes).expect("written by the same program")
    }

    /// To the first and back: sums that every process makes for itself may differ in their last bits.
    pub(super) fn sum(world: &SimpleCommunicator, values: &mut [f32]) {
        let first = world.process_at_rank(0);
        for part in values.chunks_mut(PART) {
            if world.rank() == 0 {
                let own = part.to_vec();
                first.reduce_into_root(&own[..], part, SystemOperation::sum());
            } else {
                first.reduce_into(&*part, SystemOperation::sum());
            }
            first.broadcast_into(part);
        }
    }
}
