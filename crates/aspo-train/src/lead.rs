//! Work that the first process hands out to all of them, a part each, and collects.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::ranks::Ranks;

/// Has parts of the work done, and gives what comes out, in their order.
pub type HandOut<'f, T, R, E> = dyn FnMut(Vec<T>) -> Result<Vec<R>, E> + 'f;

impl Ranks {
    /// On the first process, what `lead` makes with the help of all: it is given something that has parts of the work done by
    /// `work`, each by one of them. On the others `None`, once `lead` has ended on the first. Alone, all parts are done here.
    ///
    /// # Errors
    /// Those of `lead`, and of `work` on any process ([`Error::Rank`]), on the first; the others wait, to be ended with
    /// [`abort`](Self::abort).
    pub fn lead<T, R, O, E>(
        &self,
        mut work: impl FnMut(T) -> Result<R, E>,
        lead: impl FnOnce(&mut HandOut<'_, T, R, E>) -> Result<O, E>,
    ) -> Result<Option<O>, E>
    where
        T: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        E: std::fmt::Display + From<Error>,
    {
        if !self.is_first() {
            while let Some(part) = self.receive::<Option<T>>(0) {
                self.send(0, &work(part).map_err(|error| error.to_string()));
            }
            return Ok(None);
        }
        let made = lead(&mut |parts| {
            let (mut done, mut parts) = (Vec::with_capacity(parts.len()), parts.into_iter());
            while let Some(own) = parts.next() {
                let others = (1..self.size()).zip(parts.by_ref());
                let asked = others.map(|(rank, part)| self.send(rank, &Some(part))).count();
                done.push(work(own));
                done.extend((1..=asked).map(|rank| {
                    let told: Result<R, String> = self.receive(rank);
                    told.map_err(|text| Error::Rank { rank, text }.into())
                }));
            }
            done.into_iter().collect()
        })?;
        (1..self.size()).for_each(|rank| self.send(rank, &None::<T>));
        Ok(Some(made))
    }

    /// Something that all of them have in the end, because it is kept in a file: the first makes it as by [`lead`](Self::lead),
    /// then the others call `make` alone, which finds the file, or makes one on a disk that is not the first's.
    ///
    /// # Errors
    /// As [`lead`](Self::lead).
    pub(crate) fn share<T, R, O, E>(
        &self,
        mut work: impl FnMut(T) -> Result<R, E>,
        mut make: impl FnMut(&mut HandOut<'_, T, R, E>) -> Result<O, E>,
    ) -> Result<O, E>
    where
        T: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        E: std::fmt::Display + From<Error>,
    {
        match self.lead(&mut work, &mut make)? {
            Some(made) => Ok(made),
            None => make(&mut |parts| parts.into_iter().map(&mut work).collect()),
        }
    }
}
