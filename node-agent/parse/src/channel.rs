//! The socket between parent and child, and the sealed memory files that travel over it.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::limits::PACKET_MAX;

/// What a memory file must be before its reader looks inside: nobody can change it any more.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::WRITE);

/// A packet that came, with the descriptor that came beside it.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) packet: Vec<u8>,
    pub(crate) file: Option<OwnedFd>,
}

/// Two ends whose messages keep their borders. Both are closed when another program is started.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends a packet, with a descriptor beside it.
pub(crate) fn send(socket: impl AsFd, packet: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let files = file.as_slice();
    if !files.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(packet)], &mut beside, SendFlags::NOSIGNAL) {
            Ok(sent) if sent == packet.len() => return Ok(()),
            Ok(_) => return Err(io::Error::other("the packet was cut")),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes the next packet; `None` at the other end's end. Packets that are too long, or bring more than one descriptor, are
/// errors.
pub(crate) fn receive(socket: impl AsFd) -> io::Result<Option<Received>> {
    let mut packet = vec![0; PACKET_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        let into = &mut [IoSliceMut::new(&mut packet)];
        match recvmsg(&socket, into, &mut beside, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => break message,
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    };
    let mut file = None;
    for sent in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = sent {
            // All of them are owned here: those that aren't kept are closed.
            descriptors.for_each(|descriptor| file = Some(descriptor));
        }
    }
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet longer than the protocol allows"));
    }
    if message.bytes == 0 {
        return Ok(None);
    }
    packet.truncate(message.bytes);
    Ok(Some(Received { packet, file }))
}

/// Waits until there is something to take (or the other end is gone). `false` when `deadline` passes first.
pub(crate) fn readable_before(socket: impl AsFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().min(1 << 30) as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&timeout)) {
            Ok(0) if Instant::now() >= deadline => return Ok(false),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

/// A memory file with what `fill` writes, sealed.
pub(crate) fn sealed(name: &str, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 don't know that a memory file may be barred from being run.
    let memory = match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(name, flags)?,
        made => made?,
    };
    let mut file = File::from(memory);
    fill(&mut file)?;
    fcntl_add_seals(&file, SEALS | SealFlags::SEAL)?;
    Ok(file)
}

/// Checks a memory file that somebody else sent: sealed, and of exactly `bytes`. Read it by position: its offset is shared.
pub(crate) fn checked(file: Option<OwnedFd>, bytes: u64) -> Result<File, &'static str> {
    let file = file.ok_or("the memory file is missing")?;
    match fcntl_get_seals(&file) {
        Ok(seals) if seals.contains(SEALS) => {}
        Ok(_) => return Err("the memory file isn't sealed"),
        Err(_) => return Err("what came isn't a memory file"),
    }
    sized(file, bytes)
}

/// Checks a document's file: an ordinary file (a memory file is one) of exactly `bytes`. The sender promises that nobody
/// changes it. Read it by position: its offset is shared.
pub(crate) fn document(file: Option<OwnedFd>, bytes: u64) -> Result<File, &'static str> {
    let file = file.ok_or("the document's file is missing")?;
    match fstat(&file) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => sized(file, bytes),
        _ => Err("what came isn't an ordinary file"),
    }
}

fn sized(file: OwnedFd, bytes: u64) -> Result<File, &'static str> {
    match fstat(&file) {
        Ok(stat) if u64::try_from(stat.st_size) == Ok(bytes) => Ok(File::from(file)),
        _ => Err("the file has another size than its packet says"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    use std::time::Duration;

    use super::*;

    #[test]
    fn packets_and_files_arrive() {
        let (here, there) = pair().expect("a socket pair");
        let file = sealed("test", |file| file.write_all(b"inside")).expect("a memory file");
        send(&here, b"hello", Some(file.as_fd())).expect("sent");
        send(&here, b"again", None).expect("sent");
        let first = receive(&there).expect("received").expect("not the end");
        assert_eq!(first.packet, b"hello");
        let file = checked(first.file, 6).expect("sealed, six bytes");
        let mut inside = [0; 6];
        file.read_exact_at(&mut inside, 0).expect("read");
        assert_eq!(&inside, b"inside");
        assert!((&file).write_all(b"x").is_err(), "sealed");
        let second = receive(&there).expect("received").expect("not the end");
        assert_eq!((second.packet.as_slice(), second.file.is_none()), (b"again".as_slice(), true));
        drop(here);
        assert!(receive(&there).expect("no error").is_none(), "the end");
    }

    #[test]
    fn packets_out_of_bounds_are_errors() {
        let (here, there) = pair().expect("a socket pair");
        send(&here, &[7; PACKET_MAX + 1], None).expect("sent");
        assert_eq!(receive(&there).expect_err("too long").kind(), io::ErrorKind::InvalidData);
        let file = sealed("test", |_| Ok(())).expect("a memory file");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        let files = [file.as_fd(), file.as_fd(), file.as_fd()];
        assert!(beside.push(SendAncillaryMessage::ScmRights(&files)));
        sendmsg(&here, &[IoSlice::new(b"x")], &mut beside, SendFlags::NOSIGNAL).expect("sent");
        match receive(&there) {
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::InvalidData),
            // Alignment may leave room for a second one: one is kept, the others are closed.
            Ok(received) => assert!(received.is_some()),
        }
    }

    #[test]
    fn memory_files_are_checked() {
        let make = || sealed("test", |file| file.write_all(&[0; 100])).expect("a memory file");
        assert!(checked(Some(make().into()), 100).is_ok());
        assert!(checked(Some(make().into()), 99).expect_err("size").contains("size"));
        assert!(checked(None, 100).expect_err("missing").contains("missing"));
        let open = memfd_create("open", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("a memory file");
        assert!(checked(Some(open), 0).expect_err("unsealed").contains("sealed"));
        let null = File::open("/dev/zero").expect("a device");
        assert!(checked(Some(null.into()), 0).expect_err("a device").contains("isn't a memory file"));
        let (pipe, _other) = std::io::pipe().expect("a pipe");
        assert!(checked(Some(pipe.into()), 0).is_err(), "a pipe");
        assert!(document(Some(make().into()), 100).is_ok());
        assert!(document(Some(make().into()), 101).expect_err("size").contains("another size"));
        let null = File::open("/dev/zero").expect("a device");
        assert!(document(Some(null.into()), 0).expect_err("a device").contains("ordinary"));
    }

    #[test]
    fn a_deadline_passes() {
        let (here, _there) = pair().expect("a socket pair");
        assert!(!readable_before(&here, Instant::now() + Duration::from_millis(5)).expect("no error"));
        assert!(!readable_before(&here, Instant::now()).expect("no error"));
    }
}
