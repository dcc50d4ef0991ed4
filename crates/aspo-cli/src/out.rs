//! Standard output and the two ways in which somebody ends a program from outside: a pipe that closes (`… | head`) and
//! Ctrl-C.
//!
//! Everything is printed with [`say!`](crate::say) and [`note!`](crate::note), which never panic. A program with nothing to
//! lose ends quietly at the first line that nobody reads. One that has something to keep calls [`keep_on`] first: then a
//! closed pipe and Ctrl-C are only noted, and the program looks at [`asked_to_stop`] where it can stop.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::Failure;

/// The program stops by itself, at a place of its choice.
static KEEPS_ON: AtomicBool = AtomicBool::new(false);
/// Another process of the run tells of it.
static QUIET: AtomicBool = AtomicBool::new(false);
static CLOSED: AtomicBool = AtomicBool::new(false);
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// What the shell expects of a program that Ctrl-C has ended.
pub const INTERRUPTED_CODE: i32 = 130;

/// `println!` that does not panic where standard output is closed: see the [module](crate::out).
#[macro_export]
macro_rules! say {
    () => { $crate::out::print(format_args!("\n")) };
    ($($part:tt)*) => { $crate::out::print(format_args!("{}\n", format_args!($($part)*))) };
}

/// `eprintln!` that does not panic where standard error is closed.
#[macro_export]
macro_rules! note {
    ($($part:tt)*) => { $crate::out::complain(format_args!("{}\n", format_args!($($part)*))) };
}

/// Prints to standard output at once, as `say!` does but without a line end.
pub fn print(text: Arguments) {
    if CLOSED.load(Relaxed) || QUIET.load(Relaxed) {
        return;
    }
    let mut out = std::io::stdout().lock();
    let Err(error) = out.write_fmt(text).and_then(|()| out.flush()) else { return };
    CLOSED.store(true, Relaxed);
    let quiet = error.kind() == ErrorKind::BrokenPipe;
    if !quiet {
        complain(format_args!("error: standard output: {error}\n"));
    }
    if !KEEPS_ON.load(Relaxed) {
        std::process::exit(i32::from(!quiet));
    }
}

/// From here on nothing is printed but [`last_words`].
pub fn be_quiet() {
    QUIET.store(true, Relaxed);
}

/// Prints to standard error, if anybody reads it.
pub fn complain(text: Arguments) {
    if !QUIET.load(Relaxed) {
        last_words(text);
    }
}

/// Prints to standard error whatever [`be_quiet`] says.
pub fn last_words(text: Arguments) {
    let _ = std::io::stderr().lock().write_fmt(text);
}

/// From here on a closed standard output and the first Ctrl-C do not end the program: [`asked_to_stop`] tells of them. A
/// second Ctrl-C ends it at once.
///
/// # Errors
/// A system that gives no word of Ctrl-C.
pub fn keep_on() -> Result<(), Failure> {
    KEEPS_ON.store(true, Relaxed);
    static HANDLED: AtomicBool = AtomicBool::new(false);
    if !HANDLED.swap(true, Relaxed) {
        ctrlc::set_handler(|| {
            if INTERRUPTED.swap(true, Relaxed) || !KEEPS_ON.load(Relaxed) {
                std::process::exit(INTERRUPTED_CODE);
            }
            complain(format_args!(
                "\nstopping where the work can be gone on with; Ctrl-C again ends it at once\n"
            ));
        })?;
    }
    Ok(())
}

/// There is no more to keep: from here on the program ends as it would without [`keep_on`], and at once if it was asked to.
pub fn let_go() {
    KEEPS_ON.store(false, Relaxed);
    if interrupted() {
        std::process::exit(INTERRUPTED_CODE);
    }
    if CLOSED.load(Relaxed) {
        std::process::exit(0);
    }
}

/// Whether Ctrl-C was pressed, or standard output is closed, since [`keep_on`].
pub fn asked_to_stop() -> bool {
    interrupted() || CLOSED.load(Relaxed)
}

/// Whether Ctrl-C was pressed since [`keep_on`].
pub fn interrupted() -> bool {
    INTERRUPTED.load(Relaxed)
}
