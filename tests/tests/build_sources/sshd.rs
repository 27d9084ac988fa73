//! OpenSSH's server and agent, for repositories over ssh.

use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use whelk_tests::{Scratch, eventually, free_port};

use crate::text;

/// A server on the loopback interface, with one user, `git`, and one host key.
pub struct Sshd {
    child: Child,
    pub port: u16,
    root: PathBuf,
    _place: Scratch,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes a key of a type, and returns the file. Its public part is beside it.
pub fn key(directory: &Path, name: &str, kind: &str, passphrase: &str) -> PathBuf {
    let path = directory.join(name);
    let mut command = Command::new("ssh-keygen");
    command.args([
        "-q",
        "-t",
        kind,
        "-N",
        passphrase,
        "-C",
        name,
        "-f",
        text(&path),
    ]);
    assert!(command.status().unwrap().success());
    path
}

impl Sshd {
    /// Starts a server with a host key of a type, and further lines of its configuration.
    pub fn start(kind: &str, lines: &str) -> Self {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let place = Scratch::new(&format!("sshd-{number}"));
        let root = place.directory("server");
        let host_key = key(&root, "host", kind, "");
        let port = free_port();
        let at = |name: &str| root.join(name).display().to_string();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\nStrictModes no\n\
             PasswordAuthentication no\nPermitRootLogin yes\nLogLevel VERBOSE\n{lines}\n",
            host_key.display(),
            at("authorized"),
        );
        std::fs::write(at("config"), config).unwrap();
        std::fs::write(at("authorized"), "").unwrap();
        // The server needs a user of its own, and a directory, which the machine need not have.
        let users = "root:x:0:0::/root:/bin/sh\ngit:x:0:0::/:/bin/sh\nsshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n";
        std::fs::write(at("passwd"), users).unwrap();
        let tools = whelk_tests::cache("WHELK_SSHD", "sshd");
        let script = format!(
            "mount --bind {} /etc/passwd && mount -t tmpfs tmpfs /run && mkdir /run/sshd && chmod 755 /run/sshd && exec {}/usr/sbin/sshd -D -e -f {}",
            at("passwd"),
            tools.display(),
            at("config"),
        );
        let libraries = ["lib", "usr/lib"].map(|place| {
            let place = tools
                .join(place)
                .join(format!("{}-linux-gnu", std::env::consts::ARCH));
            place.display().to_string()
        });
        let child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .env("LD_LIBRARY_PATH", libraries.join(":"))
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(at("log")).unwrap())
            .spawn()
            .unwrap();
        let server = Self {
            child,
            port,
            root: root.clone(),
            _place: place,
        };
        eventually("sshd to listen", || {
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        server
    }

    fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Lets the owner of a key log in.
    pub fn accept(&self, key: &Path) {
        let public = std::fs::read(key.with_extension("pub")).unwrap();
        std::fs::write(self.file("authorized"), public).unwrap();
    }

    /// Returns a line for known hosts.
    pub fn known_host(&self) -> String {
        let public = std::fs::read_to_string(self.file("host.pub")).unwrap();
        format!("[127.0.0.1]:{} {public}", self.port)
    }

    pub fn url(&self, path: &Path) -> String {
        format!("ssh://git@127.0.0.1:{}{}", self.port, path.display())
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.file("log")).unwrap()
    }
}

/// An agent with keys.
pub struct Agent {
    child: Child,
    pub socket: PathBuf,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Agent {
    pub fn start(directory: &Path, name: &str, keys: &[&Path]) -> Self {
        let socket = directory.join(name);
        let child = Command::new("ssh-agent")
            .args(["-D", "-a", text(&socket)])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let agent = Self { child, socket };
        // The socket is there before anybody listens.
        eventually("the agent to listen", || {
            UnixStream::connect(&agent.socket).ok()
        });
        for key in keys {
            let mut add = Command::new("ssh-add");
            add.args(["-q", text(key)])
                .env("SSH_AUTH_SOCK", &agent.socket);
            assert!(add.status().unwrap().success());
        }
        agent
    }

    /// Returns the value of `--ssh`.
    pub fn flag(&self) -> String {
        format!("default={}", self.socket.display())
    }
}
