//! Opens connections to registries: over TCP, through a proxy, with TLS.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection as Connects};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use tower_service::Service;
use whelk_client::{Connection, Tls, Trust};

use crate::error::{Error, Result};
use crate::transport::innermost;

/// Opens connections to the host of a URL.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    pub(crate) tls: Tls,
    pub(crate) proxies: Arc<Matcher>,
    /// The directories with the certificates of servers, which proxies may have too.
    pub(crate) certificates: PathBuf,
}

type Connecting<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = io::Error;
    type Future = Connecting<Stream>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let Self {
            tls,
            proxies,
            certificates,
        } = self.clone();
        Box::pin(async move {
            let is_tls = url.scheme_str() == Some("https");
            let host = url.host().unwrap_or_default().to_owned();
            let Some(proxy) = proxies.intercept(&url) else {
                let stream = whelk_client::tcp(&address_of(&url)).await?;
                return Stream::open(&tls, is_tls, &host, Connection::Tcp(stream), false).await;
            };
            let during = |error: &(dyn std::error::Error + 'static)| {
                let name = proxy.uri().authority();
                let name = name.map_or("", |authority| authority.as_str());
                io::Error::other(format!("proxy {name}: {}", innermost(error)))
            };
            let mut connect = ToProxy { certificates };
            if !is_tls {
                let stream = connect.call(proxy.uri().clone()).await;
                let stream = stream.map_err(|error| during(&error))?.0.into_inner();
                return Stream::open(&tls, false, &host, stream, true).await;
            }
            let mut tunnel = Tunnel::new(proxy.uri().clone(), connect);
            if let Some(credentials) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(credentials.clone());
            }
            let stream = tunnel.call(url).await.map_err(|error| during(&error))?;
            Stream::open(&tls, true, &host, stream.0.into_inner(), false).await
        })
    }
}

/// Returns `HOST:PORT` of a URL.
fn address_of(url: &Uri) -> String {
    let default = if url.scheme_str() == Some("https") {
        443
    } else {
        80
    };
    format!(
        "{}:{}",
        url.host().unwrap_or_default(),
        url.port_u16().unwrap_or(default)
    )
}

/// Opens the connection to a proxy, over TLS if its URL is an `https://` one.
#[derive(Clone, Debug)]
struct ToProxy {
    certificates: PathBuf,
}

/// A connection to a proxy.
#[derive(Debug)]
struct ProxyStream(TokioIo<Connection>);

impl Service<Uri> for ToProxy {
    type Response = ProxyStream;
    type Error = io::Error;
    type Future = Connecting<ProxyStream>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let certificates = self.certificates.clone();
        Box::pin(async move {
            let stream = whelk_client::tcp(&address_of(&url)).await?;
            let connection = if url.scheme_str() == Some("https") {
                let directory = certificates.join(url.authority().map_or("", |it| it.as_str()));
                let own = directory.is_dir().then_some(&*directory);
                let tls = verified(own).map_err(io::Error::other)?;
                let host = url.host().unwrap_or_default();
                Connection::Tls(Box::new(tls.handshake(host, stream).await?))
            } else {
                Connection::Tcp(stream)
            };
            Ok(ProxyStream(TokioIo::new(connection)))
        })
    }
}

/// A connection to a registry.
#[derive(Debug)]
pub(crate) struct Stream {
    inner: TokioIo<Connection>,
    /// The server at the other end is a proxy that forwards requests.
    is_proxied: bool,
}

impl Stream {
    async fn open(
        tls: &Tls,
        is_tls: bool,
        host: &str,
        connection: Connection,
        is_proxied: bool,
    ) -> io::Result<Self> {
        let connection = match connection {
            connection if !is_tls => connection,
            Connection::Tcp(stream) => {
                Connection::Tls(Box::new(tls.handshake(host, stream).await?))
            }
            other => Connection::Nested(Box::new(tls.handshake(host, other).await?)),
        };
        Ok(Self {
            inner: TokioIo::new(connection),
            is_proxied,
        })
    }
}

impl Connects for Stream {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.is_proxied)
    }
}

macro_rules! stream_of {
    ($name:ty, $self:ident => $inner:expr) => {
        impl Read for $name {
            fn poll_read(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buffer: ReadBufCursor<'_>,
            ) -> Poll<io::Result<()>> {
                let $self = &mut *self;
                Pin::new($inner).poll_read(cx, buffer)
            }
        }

        impl Write for $name {
            fn poll_write(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                let $self = &mut *self;
                Pin::new($inner).poll_write(cx, bytes)
            }

            fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                let $self = &mut *self;
                Pin::new($inner).poll_flush(cx)
            }

            fn poll_shutdown(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
            ) -> Poll<io::Result<()>> {
                let $self = &mut *self;
                Pin::new($inner).poll_shutdown(cx)
            }
        }
    };
}

stream_of!(Stream, stream => &mut stream.inner);
stream_of!(ProxyStream, stream => &mut stream.0);

/// Maximum size of a file with certificates or a key, in bytes.
const MAX_FILE_SIZE: u64 = 4 << 20;

/// Identifies the state of a directory's files; differs after any change of one of them.
pub(crate) type Stamp = Vec<(OsString, u64, i64, i64, u64)>;

/// Returns the state of the files in a directory.
pub(crate) fn stamp(directory: &Path) -> Result<Stamp> {
    let failed = |error: &dyn std::error::Error| Error::Settings(error.to_string());
    let entries = whelk_sys::fs::list(directory).map_err(|error| failed(&error))?;
    let mut stamp = Vec::with_capacity(entries.len());
    for entry in entries {
        // Follows links: keys are often symbolic links.
        let file = whelk_sys::fs::metadata(entry.path()).map_err(|error| failed(&error))?;
        stamp.push((
            entry.file_name(),
            file.ino(),
            file.ctime(),
            file.ctime_nsec(),
            file.size(),
        ));
    }
    stamp.sort();
    Ok(stamp)
}

/// Returns TLS settings that verify the server's certificate: against the host's authorities, and
/// against those in `directory`, which may also have a client certificate.
pub(crate) fn verified(directory: Option<&Path>) -> Result<Tls> {
    let mut authorities = whelk_client::system_authorities().or_else(|error| match directory {
        // The directory may have the authority.
        Some(_) => Ok(Vec::new()),
        None => Err(Error::Settings(error)),
    })?;
    let mut identity = None;
    if let Some(directory) = directory {
        let files = files_in(directory)?;
        for name in &files {
            let path = directory.join(name);
            let stem = name.rsplit_once('.').map_or("", |(stem, _)| stem);
            let missing = |other: &str| {
                Error::Settings(format!("{}: its {other} is missing", path.display()))
            };
            if name.ends_with(".crt") {
                authorities.push(b'\n');
                authorities.extend(read(&path)?);
            } else if name.ends_with(".cert") {
                let key = format!("{stem}.key");
                if !files.contains(&key) {
                    return Err(missing(&key));
                }
                identity = Some((read(&path)?, read(&directory.join(key))?));
            } else if name.ends_with(".key") && !files.contains(&format!("{stem}.cert")) {
                return Err(missing(&format!("{stem}.cert")));
            }
        }
    }
    let identity = identity
        .as_ref()
        .map(|(certificate, key)| (certificate.as_slice(), key.as_slice()));
    Tls::new(Trust::Authorities(&authorities), identity).map_err(|error| {
        let place = directory.unwrap_or(Path::new("this host's certificates"));
        Error::Settings(format!("{}: {error}", place.display()))
    })
}

/// Returns TLS settings that accept any certificate.
pub(crate) fn unverified() -> Result<Tls> {
    Tls::new(Trust::Anyone, None).map_err(|error| Error::Settings(error.to_string()))
}

fn files_in(directory: &Path) -> Result<BTreeSet<String>> {
    let entries =
        whelk_sys::fs::list(directory).map_err(|error| Error::Settings(error.to_string()))?;
    let names = entries.iter().map(|entry| entry.file_name().into_string());
    Ok(names.filter_map(std::result::Result::ok).collect())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    whelk_sys::fs::read_at_most(path, MAX_FILE_SIZE)
        .map_err(|error| Error::Settings(error.to_string()))
}

#[cfg(test)]
mod tests {
    use whelk_sys::{Scratch, fs};

    use super::*;

    #[test]
    fn the_stamp_changes_with_the_certificates() {
        let scratch = Scratch::temporary("stamp").unwrap();
        let directory = scratch.path();
        let write = |text: &str| fs::write(directory.join("ca.crt"), text).unwrap();
        let mut seen = vec![stamp(directory).unwrap()];
        write("one");
        seen.push(stamp(directory).unwrap());
        assert_eq!(seen[1], stamp(directory).unwrap());
        // Of the same length, by another file, as tools replace them.
        fs::write(directory.join("new"), "two").unwrap();
        fs::rename(directory.join("new"), directory.join("ca.crt")).unwrap();
        seen.push(stamp(directory).unwrap());
        fs::remove_file(directory.join("ca.crt")).unwrap();
        assert_eq!(seen[0], stamp(directory).unwrap());
        seen.dedup();
        assert_eq!(seen.len(), 3);
    }
}
