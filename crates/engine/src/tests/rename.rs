//! Names of containers.

use super::{on_fake_host, request};
use crate::containers::RemoveRequest;

#[test]
fn a_name_belongs_to_one_container_until_it_is_renamed_or_removed() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        let one = engine.create(request("one")).await.unwrap();
        let two = engine.run(request("two")).await;
        let taken = |name: &str| {
            let owner = engine.containers.find(name).unwrap();
            format!(
                "Conflict. The container name \"/{name}\" is already in use by container \"{}\". You have to remove (or rename) that container to be able to reuse that name.",
                owner.id
            )
        };
        let created = engine.create(request("one")).await;
        assert_eq!(created.unwrap_err().to_string(), taken("one"));
        let renamed = engine.containers.rename("two", "one").await;
        assert_eq!(
            renamed.unwrap_err().to_string(),
            format!("Error when allocating new name: {}", taken("one"))
        );
        assert_eq!(two.name(), "two");
        engine.containers.rename("two", "three").await.unwrap();
        assert!(engine.containers.find("two").is_err());
        engine.containers.rename("one", "two").await.unwrap();
        assert_eq!(engine.containers.find("two").unwrap().id, one.id);
        assert_eq!(engine.actions(&two.id), ["create", "start", "rename"]);
        let remove = engine.containers.remove("two", RemoveRequest::default());
        remove.await.unwrap();
        engine.create(request("two")).await.unwrap();
        let (one, two) = (one.id.clone(), two.id.clone());
        engine.kill().await;

        let engine = host.open().await;
        let names = |id: &str| engine.containers.find(id).map(|container| container.name());
        assert_eq!(names(&two).unwrap(), "three");
        assert!(names(&one).is_err());
    });
}

#[test]
fn a_rename_must_change_the_name_to_a_valid_one() {
    on_fake_host(async |host| {
        let engine = host.open().await;
        engine.create(request("one")).await.unwrap();
        for (name, error) in [
            ("", "Neither old nor new names may be empty"),
            (
                "one",
                "Renaming a container with the same name as its current name",
            ),
            (
                "a b",
                "Error when allocating new name: Invalid container name (/a b), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed",
            ),
        ] {
            let renamed = engine.containers.rename("one", name).await;
            assert_eq!(renamed.unwrap_err().to_string(), error);
        }
    });
}
