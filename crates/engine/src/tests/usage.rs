//! What containers use cannot be removed.

use std::collections::BTreeMap;

use whelk_image::archive::Import;
use whelk_image::{Digest, ImageConfig, Reference};

use super::{Services, on_fake_host, request};
use crate::containers::RemoveRequest;
use crate::filters::Filters;
use crate::model::NetworkMode;
use crate::networks::{CreateNetwork, EndpointRequest};

/// An archive without files.
const EMPTY: &[u8] = &[0; 1024];

impl Services {
    /// Imports an image without files. `comment` distinguishes it from others.
    fn import(&self, name: &str, comment: &str) -> Digest {
        let import = Import {
            config: ImageConfig::default().config,
            comment: comment.into(),
            platform: None,
            name: Some(name.parse::<Reference>().unwrap().with_default_tag()),
        };
        self.images.import(EMPTY, import, &[]).unwrap()
    }
}

#[test]
fn an_image_is_in_use_until_its_container_is_removed() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        let (used, unused) = (engine.import("used", "1"), engine.import("unused", "2"));
        let mut asked = request("one");
        asked.config.image = "used".into();
        let container = engine.create(asked).await.unwrap();
        let refused = engine.usage.remove_image("used", false, &[]);
        let short = |id: &str| id[..12].to_owned();
        assert_eq!(
            refused.unwrap_err().to_string(),
            format!(
                "conflict: unable to remove repository reference \"used\" (must force) - container {} is using its referenced image {}",
                short(&container.id),
                short(used.hex())
            )
        );
        let id = used.to_string();
        let refused = engine
            .usage
            .remove_image(&id, false, &[])
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains("image is being used by stopped container"),
            "{refused}"
        );
        let counts = engine.usage.containers_by_image();
        assert_eq!(
            (counts.get(&id), counts.get(unused.as_str())),
            (Some(&vec![container.id.clone()]), None)
        );

        engine
            .usage
            .prune_images(true, &Filters::default())
            .unwrap();
        assert!(engine.images.find("used").is_ok());
        assert!(engine.images.find("unused").is_err());
        let remove = engine.containers.remove("one", RemoveRequest::default());
        remove.await.unwrap();
        engine
            .usage
            .prune_images(true, &Filters::default())
            .unwrap();
        assert_eq!(engine.images.count(), 0);
    });
}

#[test]
fn a_network_is_in_use_while_a_container_has_an_endpoint_in_it() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        for name in ["used", "unused"] {
            let asked = CreateNetwork {
                name: name.into(),
                driver: "fake".into(),
                ..CreateNetwork::default()
            };
            engine.networks.create(asked).unwrap();
        }
        let mut asked = request("one");
        asked.host.network_mode = NetworkMode::Network("used".into());
        asked.networks = BTreeMap::from([("used".into(), EndpointRequest::default())]);
        engine.create(asked).await.unwrap();
        assert_eq!(engine.usage.prune_networks(|_| true), ["unused"]);
        let remove = engine.containers.remove("one", RemoveRequest::default());
        remove.await.unwrap();
        assert_eq!(engine.usage.prune_networks(|_| true), ["used"]);
    });
}

#[test]
fn a_damaged_layer_does_not_keep_images_from_being_removed() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        let (damaged, unused) = (engine.import("damaged", "1"), engine.import("unused", "2"));
        let mut asked = request("one");
        asked.config.image = "damaged".into();
        engine.create(asked).await.unwrap();
        let image = engine.images.get(&damaged).unwrap();
        let layer = &image.config.rootfs.diff_ids[0];
        let path = engine.images.store().snapshots.path(layer).join("size");
        whelk_sys::fs::write(path, "").unwrap();
        let gc = crate::instance::ImageGc {
            max_used: None,
            high_threshold: Some(1),
            low_threshold: 0,
            minimum_age: std::time::Duration::ZERO,
            interval: std::time::Duration::ZERO,
        };
        // The disk that the test is on is fuller than that.
        let users = |id: &Digest| match *id == damaged {
            true => vec![crate::images::ImageUser {
                container: "one".into(),
                is_running: false,
            }],
            false => Vec::new(),
        };
        engine.images.keep_to_budget(&gc, users).unwrap();
        assert!(engine.images.get(&damaged).is_ok());
        assert!(engine.images.get(&unused).is_err());
    });
}
