//! Containers that serve their name over HTTP, to identify them on networks.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::{Cli, eventually};

/// Shell script that serves `$0` over HTTP on port 80.
pub const SERVES: &str = "mkdir -p /w; echo \"$0\" >/w/index.html; exec httpd -f -p 80 -h /w";

/// Runs `run -d --name NAME FLAGS busybox sh -c SCRIPT NAME`: a container on a network that serves
/// its name.
#[track_caller]
pub fn up(cli: Cli<'_>, name: &str, flags: &[&str], script: &str) {
    let mut args = vec!["run", "-d", "--name", name];
    args.extend_from_slice(flags);
    args.extend_from_slice(&["busybox", "sh", "-c", script, name]);
    cli.run(&args).ok();
}

#[track_caller]
pub fn inside(cli: Cli<'_>, name: &str, script: &str) -> String {
    cli.run(&["exec", name, "sh", "-c", script]).ok()
}

/// Checks that a name does not resolve in a container, whose server answers.
#[track_caller]
pub fn resolves_not(cli: Cli<'_>, container: &str, name: &str) {
    let output = cli.run(&["exec", container, "nslookup", name]).exits(1);
    assert!(
        output.contains("Server:") && !output.contains("Name:"),
        "{output}"
    );
}

/// Returns the host address of the first published port.
#[track_caller]
pub fn published(cli: Cli<'_>, name: &str) -> SocketAddr {
    let text = cli.run(&["port", name]).ok();
    text.lines()
        .next()
        .unwrap()
        .split(" -> ")
        .nth(1)
        .unwrap()
        .replace("0.0.0.0", "127.0.0.1")
        .parse()
        .unwrap()
}

pub fn fetch(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.split("\r\n\r\n")
        .nth(1)
        .map(|body| body.trim().to_owned())
}

#[track_caller]
pub fn serves(address: SocketAddr, word: &str) {
    assert_eq!(eventually("the server to answer", || fetch(address)), word);
}
