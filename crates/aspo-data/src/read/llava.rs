//! LLaVA's instructions: `{"id", "image", "conversations": [{"from": "human", "value": "<image>\n…"}, …]}`, also with
//! OpenAI's `messages`.

use std::path::{Path, PathBuf};

use super::chat::{self, Role};
use super::{Row, Rows, check, open_rows};
use crate::error::{Error, Result, RowFault};
use crate::pair::{ImageSource, Pair, Turn};

/// A conversation about images, without a preference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// `id` of the row, else its number.
    pub id: String,
    /// The images.
    pub images: Vec<ImageSource>,
    /// System message, where given.
    pub system: Option<String>,
    /// Questions and answers in order, with `<image>` tags as in [`Pair`]. At least one.
    pub turns: Vec<Turn>,
}

impl Conversation {
    /// The question of turn `index` behind the turns before it, as a pair with empty answers for
    /// [`crate::seva`] to fill. Images whose tags come later are left out.
    pub fn question(&self, index: usize) -> Option<Pair> {
        let turn = self.turns.get(index)?;
        let mut pair = Pair::new(self.id.clone(), turn.user.clone(), "", "");
        pair.system = self.system.clone();
        pair.history = self.turns[..index].to_vec();
        pair.images = self.images.clone();
        let placed = self.turns.iter().any(|turn| super::count_tags(&turn.user) > 0);
        if placed {
            pair.images.truncate(pair.tags());
        }
        Some(pair)
    }
}

/// The conversations of a file, one at a time.
pub struct Conversations {
    path: PathBuf,
    rows: Rows,
}

impl std::fmt::Debug for Conversations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conversations").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Reads LLaVA's instruction files.
///
/// # Errors
/// [`Error::File`] when the file is empty, no JSON, or no text in UTF-8.
pub fn read_conversations(path: &Path) -> Result<Conversations> {
    Ok(Conversations { path: path.to_owned(), rows: open_rows(path, &path.into())?.0 })
}

impl Iterator for Conversations {
    type Item = Result<Conversation>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.rows.next()?.and_then(|mut row| {
            let number = row.number;
            conversation(&mut row).map_err(|fault| Error::row(&self.path, number, fault))
        }))
    }
}

fn conversation(row: &mut Row) -> Result<Conversation, RowFault> {
    row.refuse_other_media()?;
    let mut pair = Pair::new(row.id(), "", "", "");
    let images = row.take_images()?;
    let key = if row.has("messages") { "messages" } else { "conversations" };
    let mut messages = chat::messages(key, &row.take(key)?)?;
    pair.chosen = match messages.pop() {
        Some(last) if last.role == Role::Assistant => last.text,
        _ => return Err(RowFault::Turns("it should end with the assistant's answer".to_owned())),
    };
    chat::set_prompt(&mut pair, messages, images)?;
    row.set_system(&mut pair)?;
    check::prompt(&mut pair)?;
    check::answer(key, &pair.chosen)?;
    let mut turns = pair.history;
    turns.push(Turn { user: pair.prompt, assistant: pair.chosen });
    Ok(Conversation { id: pair.id, images: pair.images, system: pair.system, turns })
}
