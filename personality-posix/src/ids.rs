//! Who a process is: process, group, session, user and group numbers.

use crate::call::Call;
use crate::fd;
use crate::services::Services;
use clustix_proto::Errno;
use clustix_proto::errno::*;
use clustix_proto::process::{Pid, Process, name};

/// The process object of `pid`; ESRCH if there is none.
pub async fn process_of<S: Services>(call: &Call<'_, S>, pid: Pid) -> Result<Process, Errno> {
    fd::load(call.cache(), name::process(pid)).await?.ok_or(ESRCH)
}

async fn own<S: Services>(call: &Call<'_, S>) -> Result<Process, Errno> {
    process_of(call, call.process.pid).await
}

/// getpid(2). (The stub answers it itself; this is for a caller that asks all the same.)
pub async fn sys_getpid<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    Ok(i64::from(call.process.pid))
}

/// getppid(2).
pub async fn sys_getppid<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    Ok(i64::from(own(call).await?.ppid))
}

/// getuid(2).
pub async fn sys_getuid<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    Ok(i64::from(own(call).await?.uid[0]))
}

/// getresuid(2): an example of filling in several arguments.
pub async fn sys_getresuid<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let ids = own(call).await?.uid;
    for (i, id) in ids.iter().enumerate() {
        call.out(i, &id.to_le_bytes());
    }
    Ok(0)
}
