//! What each fuzz target checks.
//!
//! The modules name nothing but the crate they try and the standard library's kin, so that the crates' own tests read
//! them too and put the committed corpora through the same checks.

pub mod data;
pub mod models;
pub mod segment;

pub use libfuzzer_sys;

/// The body of a fuzz target.
///
/// A panic is a crash only where it leaves our code: readers of foreign formats are fenced, and libFuzzer's own hook
/// would end the process before the fence.
#[macro_export]
macro_rules! target {
    ($module:ident::$check:ident) => {
        $crate::libfuzzer_sys::fuzz_target!(
            init: {
                let _ = std::panic::take_hook();
            },
            |bytes: &[u8]| $crate::$module::$check(bytes)
        );
    };
}
