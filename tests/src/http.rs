//! A minimal HTTP/1.1 client for the Engine API over a unix socket.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use crate::PATIENCE;

/// A complete response.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    /// Header names are in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// Returns the value of a header, given its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns the body as JSON: a string if it is not JSON, `null` if it is empty.
    pub fn json(&self) -> Value {
        if self.body.is_empty() {
            return Value::Null;
        }
        serde_json::from_slice(&self.body).unwrap_or_else(|_| Value::String(self.text()))
    }
}

/// A connection and the response that is being read from it.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// Received bytes that were not consumed yet.
    unread: Vec<u8>,
    body: Body,
    /// Whether the last request was HEAD, whose response has no body.
    headless: bool,
}

#[derive(Clone, Copy, Debug)]
enum Body {
    None,
    Sized(usize),
    Chunked,
    UntilClosed,
}

impl Connection {
    pub fn open(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            unread: Vec::new(),
            body: Body::None,
            headless: false,
        })
    }

    pub fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<()> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: whelk\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() || method == "POST" || method == "PUT" {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        self.headless = method == "HEAD";
        self.send_raw(head.as_bytes())?;
        self.send_raw(body)
    }

    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Shuts down the sending direction.
    pub fn half_close(&self) -> io::Result<()> {
        self.stream.shutdown(std::net::Shutdown::Write)
    }

    /// Reads a response's head: status and headers.
    pub fn head(&mut self) -> io::Result<(u16, Vec<(String, String)>)> {
        let end = loop {
            if let Some(at) = self
                .unread
                .windows(4)
                .position(|window| window == b"\r\n\r\n")
            {
                break at;
            }
            if !self.fill()? {
                return Err(io::Error::new(
                    ErrorKind::UnexpectedEof,
                    "the connection was closed before a response",
                ));
            }
        };
        let text = String::from_utf8_lossy(&self.unread[..end]).into_owned();
        self.unread.drain(..end + 4);
        let mut lines = text.split("\r\n");
        let status = lines
            .next()
            .and_then(|line| line.split(' ').nth(1))
            .and_then(|word| word.parse::<u16>().ok());
        let Some(status) = status else {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                format!("not an HTTP response: {text:?}"),
            ));
        };
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let value = |wanted: &str| {
            headers
                .iter()
                .find(|(name, _)| name == wanted)
                .map(|(_, value)| value.as_str())
        };
        self.body = if status == 101 {
            Body::UntilClosed
        } else if self.headless || status == 204 || status == 304 {
            Body::None
        } else if value("transfer-encoding")
            .is_some_and(|encoding| encoding.eq_ignore_ascii_case("chunked"))
        {
            Body::Chunked
        } else if let Some(length) = value("content-length").and_then(|length| length.parse().ok())
        {
            Body::Sized(length)
        } else {
            Body::UntilClosed
        };
        Ok((status, headers))
    }

    /// Returns the number of received bytes that were not consumed yet.
    pub fn unread(&self) -> usize {
        self.unread.len()
    }

    /// Reads the next part of the body; `None` at its end.
    pub fn part(&mut self) -> io::Result<Option<Vec<u8>>> {
        let cut = || io::Error::new(ErrorKind::UnexpectedEof, "the body is truncated");
        match self.body {
            Body::None | Body::Sized(0) => Ok(None),
            Body::Sized(left) => {
                if self.unread.is_empty() && !self.fill()? {
                    return Err(cut());
                }
                let count = left.min(self.unread.len());
                self.body = Body::Sized(left - count);
                Ok(Some(self.unread.drain(..count).collect()))
            }
            Body::Chunked => {
                let line = self.line()?.ok_or_else(cut)?;
                let digits = line.split(';').next().unwrap_or_default().trim();
                let size = usize::from_str_radix(digits, 16).map_err(|_| {
                    io::Error::new(
                        ErrorKind::InvalidData,
                        format!("not a chunk's size: {line:?}"),
                    )
                })?;
                while self.unread.len() < size + 2 {
                    if !self.fill()? {
                        return Err(cut());
                    }
                }
                let piece: Vec<u8> = self.unread.drain(..size).collect();
                self.unread.drain(..2);
                if size == 0 {
                    self.body = Body::None;
                    return Ok(None);
                }
                Ok(Some(piece))
            }
            Body::UntilClosed => {
                if self.unread.is_empty() && !self.fill()? {
                    self.body = Body::None;
                    return Ok(None);
                }
                Ok(Some(std::mem::take(&mut self.unread)))
            }
        }
    }

    /// Reads a complete response.
    pub fn response(&mut self) -> io::Result<Response> {
        let (status, headers) = self.head()?;
        let mut body = Vec::new();
        while let Some(piece) = self.part()? {
            body.extend(piece);
        }
        Ok(Response {
            status,
            headers,
            body,
        })
    }

    /// Reads a line without its terminator; `None` if the peer closed the connection.
    fn line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(at) = self.unread.windows(2).position(|window| window == b"\r\n") {
                let line = String::from_utf8_lossy(&self.unread[..at]).into_owned();
                self.unread.drain(..at + 2);
                return Ok(Some(line));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// Receives more bytes; `false` if the peer closed the connection.
    fn fill(&mut self) -> io::Result<bool> {
        let mut piece = vec![0; 64 << 10];
        loop {
            match self.stream.read(&mut piece) {
                Ok(count) => {
                    self.unread.extend_from_slice(&piece[..count]);
                    return Ok(count > 0);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(false),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(io::Error::new(
                        ErrorKind::TimedOut,
                        format!("nothing received for {PATIENCE:?}"),
                    ));
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Sends a request on a connection of its own.
pub(crate) fn request(
    socket: &Path,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Response> {
    let mut connection = Connection::open(socket)?;
    let mut all = vec![("Connection", "close")];
    all.extend_from_slice(headers);
    // A server that rejects a request may answer and close before it was sent completely.
    let sent = connection.send(method, path, &all, body);
    connection
        .response()
        .map_err(|error| sent.err().unwrap_or(error))
}

/// Percent-encodes a query value.
pub fn escape(value: &str) -> String {
    let mut escaped = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}
