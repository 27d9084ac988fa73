//! A web server on loopback that answers as the test says.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// A request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub method: String,
    /// Path and query, or the whole URL at a proxy.
    pub path: String,
    /// Names are in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// An answer. Its length is sent, unless its headers have one.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn new(status: u16, body: impl AsRef<[u8]>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.as_ref().to_vec(),
        }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

type Answers = dyn Fn(&Asked) -> Answer + Send + Sync;

/// A server that runs until it is dropped.
pub struct Web {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    is_over: Arc<AtomicBool>,
}

impl std::fmt::Debug for Web {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Web({})", self.address)
    }
}

/// Turns a connection into what the server reads and writes.
pub type Wrap = Arc<dyn Fn(TcpStream) -> Option<Box<dyn Stream>> + Send + Sync>;

pub trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

impl Web {
    /// Starts a server, each of whose answers is what a function returns for the request.
    pub fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        Self::wrapped(Arc::new(|stream| Some(Box::new(stream))), answer)
    }

    /// Like [`Web::start`], over TLS, for example.
    pub fn wrapped(wrap: Wrap, answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen on loopback");
        let address = listener.local_addr().expect("an address");
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let is_over = Arc::new(AtomicBool::new(false));
        let answer: Arc<Answers> = Arc::new(answer);
        std::thread::spawn({
            let (asked, is_over) = (asked.clone(), is_over.clone());
            move || {
                for stream in listener.incoming().flatten() {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    let (wrap, asked, answer) = (wrap.clone(), asked.clone(), answer.clone());
                    std::thread::spawn(move || {
                        if let Some(stream) = wrap(stream) {
                            let _ = serve(stream, &asked, &*answer);
                        }
                    });
                }
            }
        });
        Self {
            address,
            asked,
            is_over,
        }
    }

    /// Returns the URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Returns the requests since the last call.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked.lock().expect("no panic"))
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

/// Answers one request, and closes the connection.
fn serve(
    stream: Box<dyn Stream>,
    all: &Mutex<Vec<Asked>>,
    answer: &Answers,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let mut asked = Asked {
        method: words.next().unwrap_or_default(),
        path: words.next().unwrap_or_default(),
        ..Asked::default()
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        asked
            .headers
            .push((name.to_lowercase(), value.trim().to_owned()));
    }
    let length = asked.header("content-length").map(str::parse::<u64>);
    if let Some(Ok(length)) = length {
        (&mut reader).take(length).read_to_end(&mut asked.body)?;
    }
    let answer = answer(&asked);
    all.lock().expect("no panic").push(asked.clone());
    let mut head = format!("HTTP/1.1 {} Status\r\nConnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let has_length = answer
        .headers
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    if !has_length {
        head += &format!("Content-Length: {}\r\n", answer.body.len());
    }
    let stream = reader.get_mut();
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if asked.method != "HEAD" {
        stream.write_all(&answer.body)?;
    }
    stream.flush()
}
