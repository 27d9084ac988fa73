//! The socket at which another OCI runtime hands over the master end of a terminal.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, accept_with, recvmsg,
};
use whelk_runtime::{Error, Result};

use crate::boot::listen_in;

#[derive(Debug)]
pub(crate) struct Console(OwnedFd);

impl Console {
    /// Listens on a socket with this name in the run directory.
    pub(crate) fn listen(run_dir: &Path, name: &str) -> Result<Self> {
        listen_in(run_dir, name).map(Self)
    }

    /// Receives the terminal, which the runtime has sent already.
    pub(crate) fn receive(self) -> Result<OwnedFd> {
        const PATIENCE: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 200_000_000,
        };
        let step = |error: rustix::io::Errno| Error::Os(format!("receive the terminal: {error}"));
        let missing = || Error::Os("the runtime has sent no terminal".into());
        let ready = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&PATIENCE));
        if ready.map_err(step)? == 0 {
            return Err(missing());
        }
        let stream = accept_with(&self.0, SocketFlags::CLOEXEC).map_err(step)?;
        let mut name = [0; 256];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        poll(&mut [PollFd::new(&stream, PollFlags::IN)], Some(&PATIENCE)).map_err(step)?;
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        recvmsg(
            &stream,
            &mut [IoSliceMut::new(&mut name)],
            &mut control,
            flags,
        )
        .map_err(step)?;
        control
            .drain()
            .find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
                _ => None,
            })
            .ok_or_else(missing)
    }
}
