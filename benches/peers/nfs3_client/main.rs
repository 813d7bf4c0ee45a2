//! One connection of `nfs3_client`, one call after another: reads small files, lists a tree, writes a file.
//!
//! `bench-nfs3-client small|scan|write NFS_PORT MOUNT_PORT EXPORT FOLDER [BYTES]` prints the seconds it took and what it counted.

use std::time::Instant;

use nfs3_client::nfs3_types::nfs3::{
    self, CREATE3args, LOOKUP3args, Nfs3Option, Nfs3Result, READ3args, READDIRPLUS3args, WRITE3args, cookieverf3,
    createhow3, diropargs3, filename3, ftype3, nfs_fh3, sattr3, stable_how,
};
use nfs3_client::nfs3_types::rpc::{auth_unix, opaque_auth};
use nfs3_client::nfs3_types::xdr_codec::Opaque;
use nfs3_client::tokio::{TokioConnector, TokioIo};
use nfs3_client::{Nfs3Connection, Nfs3ConnectionBuilder};
use tokio::net::TcpStream;

type Failure = Box<dyn std::error::Error>;
type Connection = Nfs3Connection<TokioIo<TcpStream>>;

/// What a server may send of one READ, and what a page of a listing may hold.
const READ_BYTES: u32 = 1 << 20;
const PAGE_BYTES: (u32, u32) = (32 << 10, 128 << 10);

fn ok<T, E: std::fmt::Debug>(answer: Nfs3Result<T, E>) -> Result<T, Failure> {
    match answer {
        Nfs3Result::Ok(value) => Ok(value),
        Nfs3Result::Err((status, _)) => Err(format!("the server answered {status}").into()),
    }
}

fn at<'n>(dir: &nfs_fh3, name: &'n [u8]) -> diropargs3<'n> {
    diropargs3 { dir: dir.clone(), name: filename3(Opaque::borrowed(name)) }
}

/// Every entry of a directory with its handle.
async fn list(server: &mut Connection, dir: &nfs_fh3) -> Result<Vec<(Vec<u8>, bool, nfs_fh3)>, Failure> {
    let (mut cookie, mut cookieverf, mut out) = (0, cookieverf3::default(), Vec::new());
    loop {
        let asked = READDIRPLUS3args {
            dir: dir.clone(),
            cookie,
            cookieverf,
            dircount: PAGE_BYTES.0,
            maxcount: PAGE_BYTES.1,
        };
        let page = ok(server.readdirplus(&asked).await?)?;
        cookieverf = page.cookieverf;
        for entry in page.reply.entries.into_inner() {
            cookie = entry.cookie;
            let name = entry.name.0.as_ref().to_vec();
            if let (Nfs3Option::Some(attr), Nfs3Option::Some(handle)) = (entry.name_attributes, entry.name_handle)
                && name != b"."
                && name != b".."
            {
                out.push((name, attr.type_ == ftype3::NF3DIR, handle));
            }
        }
        if page.reply.eof {
            return Ok(out);
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, what, nfs_port, mount_port, export, folder, rest @ ..] = arguments.as_slice() else {
        return Err("bench-nfs3-client small|scan|write NFS_PORT MOUNT_PORT EXPORT FOLDER [BYTES]".into());
    };
    let auth =
        auth_unix { stamp: 0, machinename: Opaque::borrowed(b"bench"), uid: 0, gid: 0, gids: Vec::new() };
    let mut server = Nfs3ConnectionBuilder::new(TokioConnector, "127.0.0.1".to_owned(), export.clone())
        .credential(opaque_auth::auth_unix(&auth))
        .nfs3_port(nfs_port.parse()?)
        .mount_port(mount_port.parse()?)
        .mount()
        .await?;
    let mut dir = server.root_nfs_fh3();
    for name in folder.split('/').filter(|name| !name.is_empty()) {
        dir = ok(server.lookup(&LOOKUP3args { what: at(&dir, name.as_bytes()) }).await?)?.object;
    }
    let (seconds, count) = match what.as_str() {
        "small" => {
            let files = list(&mut server, &dir).await?;
            let begun = Instant::now();
            let mut count = 0;
            for (_, is_directory, file) in files {
                if !is_directory {
                    ok(server.read(&READ3args { file, offset: 0, count: READ_BYTES }).await?)?;
                    count += 1;
                }
            }
            (begun.elapsed().as_secs_f64(), count)
        }
        "scan" => {
            let begun = Instant::now();
            let (mut open, mut count) = (vec![dir], 0);
            while let Some(next) = open.pop() {
                for (_, is_directory, handle) in list(&mut server, &next).await? {
                    count += 1;
                    if is_directory {
                        open.push(handle);
                    }
                }
            }
            (begun.elapsed().as_secs_f64(), count)
        }
        "write" => {
            let bytes: u64 = rest.first().ok_or("how many bytes?")?.parse()?;
            let how = createhow3::UNCHECKED(sattr3::default());
            let made = ok(server.create(&CREATE3args { where_: at(&dir, b"written-serially"), how }).await?)?;
            let Nfs3Option::Some(file) = made.obj else { return Err("no handle came with the new file".into()) };
            let data = vec![7; 1 << 20];
            let begun = Instant::now();
            let mut offset = 0;
            while offset < bytes {
                let asked = WRITE3args {
                    file: file.clone(),
                    offset,
                    count: data.len() as u32,
                    stable: stable_how::FILE_SYNC,
                    data: Opaque::borrowed(&data),
                };
                offset += u64::from(ok(server.write(&asked).await?)?.count);
            }
            let seconds = begun.elapsed().as_secs_f64();
            let gone = nfs3::REMOVE3args { object: at(&dir, b"written-serially") };
            ok(server.remove(&gone).await?)?;
            (seconds, bytes)
        }
        other => return Err(format!("{other}: expected small, scan or write").into()),
    };
    println!("{{\"seconds\":{seconds},\"count\":{count}}}");
    Ok(())
}
