//! A volume plugin, which an engine finds in its run directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};

use serde_json::{Value, json};

use crate::Engine;

/// A volume plugin with a directory for each volume, which records its requests.
#[derive(Clone, Debug)]
pub struct VolumePlugin(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    base: PathBuf,
    volumes: Mutex<BTreeMap<String, Value>>,
    /// Volumes and the ids that they are mounted for.
    mounts: Mutex<BTreeSet<(String, String)>>,
    asked: Mutex<Vec<String>>,
    /// The method and the process that is killed when it is called.
    victim: Mutex<Option<(String, rustix::process::Pid)>>,
    /// The method whose requests wait.
    held: Mutex<Option<String>>,
    released: Condvar,
    /// Fixed responses, by method.
    errors: Mutex<BTreeMap<String, String>>,
}

impl VolumePlugin {
    /// Starts a plugin that an engine finds under `name`.
    pub fn start(engine: &Engine, name: &str) -> Self {
        let directory = engine.run().join("plugins");
        fs::create_dir_all(&directory).unwrap();
        let plugin = Self(Arc::new(Inner {
            base: engine.scratch(name),
            volumes: Mutex::default(),
            mounts: Mutex::default(),
            asked: Mutex::default(),
            errors: Mutex::default(),
            victim: Mutex::default(),
            held: Mutex::default(),
            released: Condvar::new(),
        }));
        let socket = directory.join(format!("{name}.sock"));
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let serving = plugin.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serving.serve(stream);
            }
        });
        plugin
    }

    fn serve(&self, stream: std::os::unix::net::UnixStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let (mut first, mut length) = (String::new(), 0);
        if reader.read_line(&mut first).is_err() {
            return;
        }
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) <= 2 {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let method = first
            .split(' ')
            .nth(1)
            .unwrap_or_default()
            .trim_start_matches('/')
            .to_owned();
        let answer = self
            .answer(&method, &serde_json::from_slice(&body).unwrap_or_default())
            .to_string();
        let mut stream = stream;
        let _ = write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{answer}",
            answer.len()
        );
    }

    /// Does what a request asks for, and returns the response.
    pub fn answer(&self, method: &str, body: &Value) -> Value {
        let method = method.trim_start_matches("VolumeDriver.");
        let name = body["Name"].as_str().unwrap_or_default();
        let details = [name, body["ID"].as_str().unwrap_or_default()].join(" ");
        self.0
            .asked
            .lock()
            .unwrap()
            .push(format!("{method} {}", details.trim()).trim().to_owned());
        if let Some((_, victim)) = self
            .0
            .victim
            .lock()
            .unwrap()
            .take_if(|(when, _)| when == method)
        {
            rustix::process::kill_process(victim, rustix::process::Signal::KILL).unwrap();
        }
        let held = self.0.held.lock().unwrap();
        let waits = |held: &mut Option<String>| held.as_deref() == Some(method);
        drop(self.0.released.wait_while(held, waits).unwrap());
        if let Some(error) = self.0.errors.lock().unwrap().get(method) {
            return json!({"Err": error});
        }
        let mut volumes = self.0.volumes.lock().unwrap();
        let path = self.0.base.join(name);
        let id = body["ID"].as_str().unwrap_or_default();
        let mount = (name.to_owned(), id.to_owned());
        let described = |name: &str, options: &Value| json!({"Name": name, "Mountpoint": self.0.base.join(name), "CreatedAt": "2024-05-06T07:08:09Z", "Status": {"options": options}});
        match method {
            "Plugin.Activate" => json!({"Implements": ["VolumeDriver"]}),
            "Capabilities" => json!({"Capabilities": {"Scope": "global"}}),
            "Create" => {
                fs::create_dir_all(&path).unwrap();
                volumes.insert(name.to_owned(), body["Opts"].clone());
                json!({"Err": ""})
            }
            "Get" => match volumes.get(name) {
                Some(options) => json!({"Volume": described(name, options)}),
                None => json!({"Err": "no such volume of mine"}),
            },
            "List" => {
                json!({"Volumes": volumes.iter().map(|(name, options)| described(name, options)).collect::<Vec<_>>()})
            }
            "Mount" => {
                self.0.mounts.lock().unwrap().insert(mount);
                json!({"Mountpoint": path})
            }
            "Unmount" => {
                self.0.mounts.lock().unwrap().remove(&mount);
                json!({})
            }
            "Remove" => {
                volumes.remove(name);
                let _ = fs::remove_dir_all(path);
                json!({})
            }
            _ => json!({"Err": "unknown"}),
        }
    }

    /// Returns the requests since the last call, without those that change nothing.
    pub fn asked(&self) -> Vec<String> {
        let mut asked = std::mem::take(&mut *self.0.asked.lock().unwrap());
        asked.retain(|line| {
            !["Get", "List", "Capabilities", "Plugin.Activate"]
                .iter()
                .any(|question| line.starts_with(question))
        });
        asked
    }

    /// Returns everything that it was asked since the last call of [`Self::asked`].
    pub fn questions(&self) -> Vec<String> {
        self.0.asked.lock().unwrap().clone()
    }

    /// Returns its volumes, and once more for each id that one is mounted for.
    pub fn volumes_and_mounts(&self) -> Vec<String> {
        let volumes = self.0.volumes.lock().unwrap();
        let mounts = self.0.mounts.lock().unwrap();
        let mounted = mounts.iter().map(|(volume, _)| volume);
        volumes.keys().chain(mounted).cloned().collect()
    }

    /// Lets it answer a method with an error, or do it again.
    pub fn refuse(&self, method: &str, error: Option<&str>) {
        let mut errors = self.0.errors.lock().unwrap();
        match error {
            Some(error) => drop(errors.insert(method.to_owned(), error.to_owned())),
            None => drop(errors.remove(method)),
        }
    }

    /// Lets requests of a method wait, or none.
    pub fn hold(&self, method: Option<&str>) {
        *self.0.held.lock().unwrap() = method.map(str::to_owned);
        self.0.released.notify_all();
    }

    /// Kills a process instead of responding to the next call of a method.
    pub fn kill_at(&self, method: &str, pid: i32) {
        *self.0.victim.lock().unwrap() = Some((
            method.to_owned(),
            rustix::process::Pid::from_raw(pid).unwrap(),
        ));
    }

    /// Returns a volume's directory.
    pub fn path(&self, volume: &str) -> PathBuf {
        self.0.base.join(volume)
    }
}
