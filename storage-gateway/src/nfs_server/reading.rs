//! Procedures that change nothing: GETATTR, LOOKUP, ACCESS, READLINK, READ, FSSTAT, FSINFO, PATHCONF.

use nfs3_types::nfs3::{
    ACCESS3resok, FSF3_CANSETTIME, FSF3_HOMOGENEOUS, FSF3_LINK, FSINFO3resok, FSSTAT3resok, GETATTR3resok,
    LOOKUP3resok, PATHCONF3resok, READLINK3resok, nfspath3, nfsstat3, nfstime3,
};
use nfs3_types::xdr_codec::Opaque;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::access::{Caller, EXECUTE, READ};
use super::attributes::{fattr, handle as handle_of, post};
use super::faults::Fault;
use super::programs::{Programs, handle, name, succeed};
use super::tree::Refusal;
use crate::export::Kind;
use crate::export::beneath::kind;
use crate::export::nfs::xdr::{Reader, put};

/// Bytes of a READ or WRITE.
const TRANSFER: u32 = 1 << 20;

impl Programs {
    pub(super) fn getattr(&self, mut arguments: Reader, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let object = self.tree.resolve(&handle(&mut arguments)?)?;
        succeed(out, &GETATTR3resok { obj_attributes: fattr(&object.stat) });
        Ok(())
    }

    pub(super) fn lookup(&self, caller: &Caller, mut arguments: Reader, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let directory = self.tree.resolve(&handle(&mut arguments)?)?.directory()?;
        let name = name(&mut arguments)?;
        caller.need(&directory.stat, EXECUTE)?;
        let found = match name.as_ref() {
            b"." => self.tree.resolve(&directory.key.to_handle().into())?,
            b".." => self.tree.above(&directory)?,
            name => self.tree.child(&directory, name)?,
        };
        succeed(
            out,
            &LOOKUP3resok {
                object: handle_of(found.key),
                obj_attributes: post(&found.stat),
                dir_attributes: post(&directory.stat),
            },
        );
        Ok(())
    }

    pub(super) fn access(&self, caller: &Caller, mut arguments: Reader, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let object = self.tree.resolve(&handle(&mut arguments)?)?;
        let access = caller.access(&object.stat, arguments.u32()?, self.read_only());
        succeed(out, &ACCESS3resok { obj_attributes: post(&object.stat), access });
        Ok(())
    }

    pub(super) fn readlink(&self, mut arguments: Reader, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let object = self.tree.resolve(&handle(&mut arguments)?)?;
        if kind(&object.stat) != Kind::Symlink {
            return Err(nfsstat3::NFS3ERR_INVAL.into());
        }
        let target = rustix::fs::readlinkat(&object.fd, "", Vec::new())?;
        let data = nfspath3(Opaque::borrowed(target.to_bytes()));
        succeed(out, &READLINK3resok { symlink_attributes: post(&object.stat), data });
        Ok(())
    }

    pub(super) fn read(&self, caller: &Caller, mut arguments: Reader, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let object = self.tree.resolve(&handle(&mut arguments)?)?;
        let (offset, count) = (arguments.take::<u64>()?, arguments.u32()?.min(TRANSFER));
        if kind(&object.stat) == Kind::File {
            // Who may execute a file must be able to load it.
            caller.need_contents(&object.stat, READ).or_else(|_| caller.need_contents(&object.stat, EXECUTE))?;
        }
        let file = self.tree.open_file(&object, OFlags::RDONLY)?;
        let before = rustix::fs::fstat(&file)?;
        let size = u64::try_from(before.st_size).unwrap_or(0);
        // Straight into the reply: status, attributes, count, end, length, then the data and its padding.
        put(out, &nfsstat3::NFS3_OK);
        put(out, &post(&before));
        let counted = out.len();
        out.resize(counted + 12, 0);
        let start = out.len();
        let mut wanted = usize::try_from(size.saturating_sub(offset).min(count.into())).expect("at most 1 MiB");
        if wanted > 1 && self.faults.strikes(Fault::ShortRead) {
            wanted = wanted.div_ceil(3);
        }
        out.resize(start + wanted, 0);
        let mut filled = 0;
        while filled < wanted {
            match rustix::io::pread(&file, &mut out[start + filled..], offset + filled as u64) {
                // It shrank since it was asked for its size.
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        out.truncate(start + filled);
        out.resize(start + filled.next_multiple_of(4), 0);
        let sent = u32::try_from(filled).expect("at most 1 MiB");
        let trouble = self.faults.now();
        if trouble.corrupt && filled > 0 {
            out[start + filled / 2] ^= 0x40;
        }
        let end = filled < wanted || offset.saturating_add(filled as u64) >= size;
        let said = sent + u32::from(trouble.wrong_lengths);
        for (i, word) in [said, u32::from(end), sent].into_iter().enumerate() {
            out[counted + 4 * i..counted + 4 * i + 4].copy_from_slice(&word.to_be_bytes());
        }
        Ok(())
    }

    pub(super) fn fsstat(&self, mut arguments: Reader, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let object = self.tree.resolve(&handle(&mut arguments)?)?;
        let fs = rustix::fs::fstatvfs(&object.fd)?;
        succeed(
            out,
            &FSSTAT3resok {
                obj_attributes: post(&object.stat),
                tbytes: fs.f_blocks.saturating_mul(fs.f_frsize),
                fbytes: fs.f_bfree.saturating_mul(fs.f_frsize),
                abytes: fs.f_bavail.saturating_mul(fs.f_frsize),
                tfiles: fs.f_files,
                ffiles: fs.f_ffree,
                afiles: fs.f_favail,
                invarsec: 0,
            },
        );
        Ok(())
    }

    pub(super) fn fsinfo(&self, mut arguments: Reader, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let object = self.tree.resolve(&handle(&mut arguments)?)?;
        succeed(
            out,
            &FSINFO3resok {
                obj_attributes: post(&object.stat),
                rtmax: TRANSFER,
                rtpref: TRANSFER,
                rtmult: 4096,
                wtmax: TRANSFER,
                wtpref: TRANSFER,
                wtmult: 4096,
                dtpref: 128 << 10,
                maxfilesize: i64::MAX as u64,
                time_delta: nfstime3 { seconds: 0, nseconds: 1 },
                properties: FSF3_LINK | FSF3_HOMOGENEOUS | FSF3_CANSETTIME,
            },
        );
        Ok(())
    }

    pub(super) fn pathconf(&self, mut arguments: Reader, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let object = self.tree.resolve(&handle(&mut arguments)?)?;
        succeed(
            out,
            &PATHCONF3resok {
                obj_attributes: post(&object.stat),
                linkmax: 32_000,
                name_max: 255,
                no_trunc: true,
                chown_restricted: true,
                case_insensitive: false,
                case_preserving: true,
            },
        );
        Ok(())
    }
}
