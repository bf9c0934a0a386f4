//! Signals: actions, masks, delivery.

use crate::state::bit;

/// Signals whose default action is to ignore them: SIGCHLD, SIGURG, SIGWINCH, SIGCONT (its effect
/// is taken by the process server when it is sent).
pub const IGNORED_BY_DEFAULT: u64 = bit(17) | bit(23) | bit(28) | bit(18);
