//! Creating an image from a container.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use whelk_image::config::ContainerConfig;
use whelk_image::{Digest, Reference};
use whelk_text::signal;

use super::readers::FileReader;
use super::{Container, Containers, to_its_end};
use crate::error::{Error, Result};
use crate::images::NewImage;
use crate::model::{Config, HealthTest, Healthcheck, Status};
use crate::workload::blocking;

/// A request to create an image from a container.
#[derive(Clone, Debug, Default)]
pub struct CommitRequest {
    pub name: Option<Reference>,
    pub author: String,
    pub comment: String,
    /// Dockerfile instructions that change the image's settings.
    pub changes: Vec<String>,
    /// Pause the container meanwhile, if it runs.
    pub pause: bool,
    /// Settings to begin with, instead of the container's. The container's are used where these are
    /// empty.
    pub config: Option<Config>,
}

impl Containers {
    /// Creates an image from a container's changes. The content of its mounts is not part of it. Returns
    /// the image's id.
    ///
    /// # Errors
    /// Returns an error if there is no such container, if a change is invalid, or if the image cannot be
    /// stored.
    pub async fn commit(self: &Arc<Self>, name: &str, request: CommitRequest) -> Result<Digest> {
        let container = self.find(name)?;
        let containers = self.clone();
        to_its_end(async move { containers.commit_now(&container, request).await }).await
    }

    async fn commit_now(
        self: &Arc<Self>,
        container: &Arc<Container>,
        request: CommitRequest,
    ) -> Result<Digest> {
        let reader = FileReader::new(&container.layer_readers);
        let record = container.record().clone();
        let refused = match record.state.status {
            Status::Dead => "which is Dead",
            Status::Removing => "which is being removed",
            _ => "",
        };
        if !refused.is_empty() {
            return Err(Error::conflict(format!(
                "You cannot commit container {} {refused}",
                record.id
            )));
        }
        let own = image_config(&record.config);
        let mut config = request
            .config
            .as_ref()
            .map_or_else(|| own.clone(), image_config);
        whelk_image::changes::apply(&mut config, &request.changes)?;
        if !config.stop_signal.is_empty() && config.stop_signal != own.stop_signal {
            signal::parse(&config.stop_signal)?;
        }
        merge(&mut config, own);
        let new = NewImage {
            parent: (!record.image.is_empty())
                .then(|| record.image.parse())
                .transpose()?,
            config,
            created_by: record.config.cmd.clone().unwrap_or_default().join(" "),
            author: request.author,
            comment: request.comment.clone(),
            name: request.name.clone(),
        };
        let pauses =
            request.pause && matches!(record.state.status, Status::Running | Status::Paused);
        // As with Docker, one that cannot be paused is committed as it is.
        let pause = match pauses {
            true => self.pause_meanwhile(container).await.ok(),
            false => None,
        };
        let images = self.images.clone();
        let upper = self.instance.container_dir(&record.id).join("upper");
        let committed = blocking(move || {
            let _reader = reader;
            images.commit(new, &upper)
        });
        let committed = committed.await.map_err(|error| container.explain(error));
        if let Ok(image) = &committed {
            let name = request.name.as_ref();
            let attributes = [
                ("comment", request.comment),
                ("imageID", image.to_string()),
                (
                    "imageRef",
                    name.map_or_else(String::new, Reference::familiar),
                ),
            ];
            self.publish(container, "commit", &attributes);
        }
        if let Some(pause) = pause {
            self.end_pause(pause).await;
        }
        committed
    }
}

/// Returns the part of a container's settings that images have.
fn image_config(config: &Config) -> ContainerConfig {
    let names = |names: Vec<String>| -> BTreeMap<String, Value> {
        names.into_iter().map(|name| (name, json!({}))).collect()
    };
    ContainerConfig {
        user: config.user.clone(),
        exposed_ports: names(
            config
                .exposed_ports
                .iter()
                .map(ToString::to_string)
                .collect(),
        ),
        // A variable without a value removes one of the image's.
        env: config
            .env
            .iter()
            .flatten()
            .filter(|variable| variable.contains('='))
            .cloned()
            .collect(),
        entrypoint: config.entrypoint.clone().unwrap_or_default(),
        cmd: config.cmd.clone().unwrap_or_default(),
        volumes: names(config.volumes.iter().flatten().cloned().collect()),
        working_dir: config.working_dir.clone(),
        labels: config.labels.clone(),
        stop_signal: config.stop_signal.clone(),
        on_build: config.on_build.clone().unwrap_or_default(),
        shell: config.shell.clone().unwrap_or_default(),
        healthcheck: config.healthcheck.as_ref().map(health_json),
        args_escaped: config.args_escaped,
    }
}

fn health_json(check: &Healthcheck) -> Value {
    let words = |kind: &str, words: &[String]| {
        let words = words.iter().map(String::as_str);
        std::iter::once(kind)
            .chain(words)
            .map(Value::from)
            .collect()
    };
    let test: Vec<Value> = match &check.test {
        HealthTest::Inherit => Vec::new(),
        HealthTest::Disabled => vec!["NONE".into()],
        HealthTest::Command(command) => words("CMD", command),
        HealthTest::Shell(command) => words("CMD-SHELL", command),
    };
    let mut fields = serde_json::Map::new();
    if !test.is_empty() {
        fields.insert("Test".into(), test.into());
    }
    for (name, value) in [
        ("Interval", check.interval),
        ("Timeout", check.timeout),
        ("StartPeriod", check.start_period),
        ("StartInterval", check.start_interval),
        ("Retries", check.retries),
    ] {
        if value != 0 {
            fields.insert(name.into(), value.into());
        }
    }
    fields.into()
}

/// Completes settings by those of the container, as Docker does.
fn merge(config: &mut ContainerConfig, own: ContainerConfig) {
    let text = |one: &mut String, other: String| {
        if one.is_empty() {
            *one = other;
        }
    };
    text(&mut config.user, own.user);
    text(&mut config.working_dir, own.working_dir);
    text(&mut config.stop_signal, own.stop_signal);
    for (port, value) in own.exposed_ports {
        config.exposed_ports.entry(port).or_insert(value);
    }
    for (path, value) in own.volumes {
        config.volumes.entry(path).or_insert(value);
    }
    for (key, value) in own.labels {
        config.labels.entry(key).or_insert(value);
    }
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    for variable in own.env {
        if !config
            .env
            .iter()
            .any(|known| name(known) == name(&variable))
        {
            config.env.push(variable);
        }
    }
    if config.entrypoint.is_empty() {
        if config.cmd.is_empty() {
            config.cmd = own.cmd;
        }
        config.entrypoint = own.entrypoint;
    }
    if config.healthcheck.is_none() {
        config.healthcheck = own.healthcheck;
    }
}
