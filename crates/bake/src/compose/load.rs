//! Loads files of Compose: their variables, what they extend and include.
//!
//! ```text
//! document ─► variables ─► long forms ─► extends ─► tags !reset ─► include ─► added to earlier ones ─► paths
//! ```

use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::Value;
use whelk_yaml::Document;

use super::canonical::{self, scalar};
use super::interpolation::Interpolation;
use super::place::Place;
use super::relative::{parent, resolve, under};
use super::{Object, Variables, merge};
use crate::dot_env::{self, Budget};
use crate::error::{Error, Result};
use crate::{File, ReadFile};

/// The maximum number of files that files name, and of their bytes.
const MAX_FILES: usize = 1_000;
const MAX_BYTES: usize = 64 << 20;

/// The maximum number of values in services that others extend, counted for each of them.
const MAX_COPIED: usize = 2_000_000;

/// How many services may extend each other, and files include each other.
const MAX_CHAIN: usize = 50;

/// Paths of what tags replace.
type Replaced = Vec<Vec<String>>;

/// Loads files.
pub(super) struct Loader<'a> {
    read: &'a ReadFile<'a>,
    home: &'a str,
    files: usize,
    bytes: usize,
    /// Files with variables of services.
    env_files: BTreeMap<String, Option<Rc<str>>>,
    copied: usize,
    /// What values of files `.env` may still have.
    pub values: Budget,
    pub interpolation: Interpolation,
}

/// A project: that of the command, or one that is included.
struct Project<'a> {
    /// Relative to the working directory; empty for that.
    directory: &'a str,
    variables: &'a Variables<'a>,
    /// The files that include each other.
    chain: &'a [String],
}

impl<'a> Loader<'a> {
    pub fn new(read: &'a ReadFile<'a>, home: &'a str) -> Self {
        Self {
            read,
            home,
            files: 0,
            bytes: 0,
            env_files: BTreeMap::new(),
            copied: 0,
            values: Budget::default(),
            interpolation: Interpolation::default(),
        }
    }

    /// Returns the model of files, in their long forms, with paths relative to the working directory.
    pub fn load(&mut self, files: &[&File], variables: &mut Variables<'_>) -> Result<Object> {
        let read = |file: &&File| Ok((file.name.clone(), documents(&file.name, &file.content)?));
        let files = files.iter().map(read).collect::<Result<Vec<_>>>()?;
        let name = self.project_name(&files, variables)?;
        variables.set("COMPOSE_PROJECT_NAME", name);
        let project = Project {
            directory: "",
            variables,
            chain: &[],
        };
        self.model(&project, files, "")
    }

    /// Returns the name of the project, which is a variable.
    fn project_name(
        &mut self,
        files: &[(String, Vec<Document>)],
        variables: &Variables<'_>,
    ) -> Result<String> {
        let documents = files.iter().flat_map(|(_, documents)| documents);
        let mut names = documents.filter_map(|document| document.value.get("name")?.as_str());
        let given = variables.get("COMPOSE_PROJECT_NAME");
        let given = given.filter(|name| !name.is_empty()).cloned();
        match names.rfind(|name| !name.is_empty()) {
            Some(name) => self.interpolation.text(name, Place::new("name"), variables),
            None => Ok(given.unwrap_or("bake".into())),
        }
    }

    /// Reads a file that a file names. Returns `None` if there is none.
    pub fn file(&mut self, path: &str) -> Result<Option<String>> {
        self.files += 1;
        if self.files > MAX_FILES {
            return Err(Error::new(format!(
                "more than {MAX_FILES} files are included, extended or named by env_file"
            )));
        }
        let content = (self.read)(path).map_err(Error::new)?;
        self.count(path, content.as_deref().unwrap_or_default())?;
        Ok(content)
    }

    /// Counts the bytes of a file.
    fn count(&mut self, path: &str, content: &str) -> Result<()> {
        self.bytes += content.len();
        match self.bytes > MAX_BYTES {
            true => Err(Error::new(format!(
                "{path}: files that are included, extended or named by env_file have more than {MAX_BYTES} bytes"
            ))),
            false => Ok(()),
        }
    }

    /// Reads the file with variables of a service. Many services may have the same one, which is read once, and whose bytes count each
    /// time.
    pub fn env_file(&mut self, path: &str) -> Result<Option<Rc<str>>> {
        if let Some(known) = self.env_files.get(path).cloned() {
            self.count(path, known.as_deref().unwrap_or_default())?;
            return Ok(known);
        }
        let content: Option<Rc<str>> = self.file(path)?.map(Rc::from);
        self.env_files.insert(path.to_owned(), content.clone());
        Ok(content)
    }

    fn documents(&mut self, path: &str) -> Result<Vec<Document>> {
        let content = self.file(path)?.ok_or_else(|| missing(path))?;
        documents(path, &content)
    }

    /// Returns what files of a project are together. Paths are resolved as in `relative`.
    fn model(
        &mut self,
        project: &Project<'_>,
        files: Vec<(String, Vec<Document>)>,
        relative: &str,
    ) -> Result<Object> {
        let mut model = Object::new();
        for (name, documents) in files {
            for document in documents {
                let mut members = self.members(project, &name, document.value)?;
                self.extend_all(project, &name, &mut members, &document.replaced)?;
                for path in &document.replaced {
                    merge::remove(&mut model, path);
                }
                if let Some(included) = members.shift_remove("include") {
                    self.include_all(project, &name, included, &mut members)?;
                }
                merge::documents(&mut model, members)?;
            }
        }
        let services = model.get_mut("services").and_then(Value::as_object_mut);
        for service in services.into_iter().flat_map(Object::values_mut) {
            if let Some(Value::Object(build)) = service.get_mut("build") {
                build.entry("context").or_insert_with(|| ".".into());
            }
        }
        resolve(&mut model, relative, self.home);
        Ok(model)
    }

    /// Returns a document with its variables replaced, in its long forms.
    fn members(&mut self, project: &Project<'_>, name: &str, mut value: Value) -> Result<Object> {
        let Value::Object(members) = &mut value else {
            return Err(Error::new(format!(
                "{name}: top-level object must be a mapping"
            )));
        };
        for (key, value) in members.iter_mut() {
            self.interpolation
                .replace(value, Place::new(key), project.variables)?;
        }
        let mut members = std::mem::take(members);
        canonical::document(&mut members)?;
        Ok(members)
    }

    /// Replaces all services that extend others.
    fn extend_all(
        &mut self,
        project: &Project<'_>,
        file: &str,
        members: &mut Object,
        replaced: &Replaced,
    ) -> Result<()> {
        let Some(Value::Object(services)) = members.get_mut("services") else {
            return Ok(());
        };
        let extends = |(_, service): &(&String, &Value)| service.get("extends").is_some();
        let names: Vec<String> = services
            .iter()
            .filter(extends)
            .map(|(name, _)| name.clone())
            .collect();
        let extending = Extending { project, file };
        for name in names {
            self.extend(&extending, &name, services, &[], &[replaced])?;
        }
        Ok(())
    }

    /// Replaces a service by what it extends and its own attributes. `chain` are the services that lead to it.
    fn extend(
        &mut self,
        from: &Extending<'_>,
        name: &str,
        services: &mut Object,
        chain: &[(String, String)],
        replaced: &[&Replaced],
    ) -> Result<()> {
        let Some(extends) = services.get(name).and_then(|own| own.get("extends")) else {
            return Ok(());
        };
        let (base, path) = reference(name, extends)?;
        let link = (
            path.clone().unwrap_or(from.file.to_owned()),
            name.to_owned(),
        );
        let chain = linked(chain, link)?;
        let found = match &path {
            Some(path) => {
                let (mut others, own) = self.base(from, name, &base, path)?;
                let replaced = [replaced, &[&own]].concat();
                self.extend(from, &base, &mut others, &chain, &replaced)?;
                self.copy(others.get(&base))?.map(|mut found| {
                    clear(&mut found, name, &replaced);
                    found
                })
            }
            None => {
                if !services.contains_key(&base) {
                    return Err(Error::new(format!(
                        "cannot extend service {name:?} in {}: service {base:?} not found",
                        from.file
                    )));
                }
                self.extend(from, &base, services, &chain, replaced)?;
                self.copy(services.get(&base))?.map(|mut found| {
                    clear(&mut found, name, replaced);
                    found
                })
            }
        };
        let Some(Value::Object(own)) = services.get_mut(name) else {
            return Ok(());
        };
        own.shift_remove("extends");
        if let Some(mut found) = found {
            merge::services(name, &mut found, std::mem::take(own))?;
            *own = found;
        }
        Ok(())
    }

    /// Returns the services of a file that has one to extend, and what its tags replace.
    fn base(
        &mut self,
        from: &Extending<'_>,
        name: &str,
        base: &str,
        path: &str,
    ) -> Result<(Object, Replaced)> {
        let failed = |cause: &str| {
            Error::new(format!(
                "cannot extend service {name:?} in {}: {cause}",
                from.file
            ))
        };
        let place = under(from.project.directory, path);
        let mut model = Object::new();
        let mut replaced = Replaced::new();
        for document in self.documents(&place)? {
            let members = self.members(from.project, &place, document.value)?;
            for path in &document.replaced {
                merge::remove(&mut model, path);
            }
            merge::documents(&mut model, members)?;
            replaced = document.replaced;
        }
        resolve(&mut model, &parent(path), self.home);
        match model.shift_remove("services") {
            Some(Value::Object(services)) if services.contains_key(base) => {
                Ok((services, replaced))
            }
            Some(_) => Err(failed(&format!("service {base:?} not found in {path}"))),
            None => Err(failed("no services section")),
        }
    }

    /// Returns a copy of a service; `None` for one without attributes.
    fn copy(&mut self, service: Option<&Value>) -> Result<Option<Object>> {
        let Some(Value::Object(service)) = service else {
            return Ok(None);
        };
        self.copied += service.values().map(nodes).sum::<usize>();
        match self.copied > MAX_COPIED {
            true => Err(Error::new("services that others extend are too large")),
            false => Ok(Some(service.clone())),
        }
    }

    /// Adds the resources of other projects to a document.
    fn include_all(
        &mut self,
        project: &Project<'_>,
        file: &str,
        included: Value,
        members: &mut Object,
    ) -> Result<()> {
        let Value::Array(entries) = included else {
            return Err(Error::new(format!(
                "`include` must be a list, got {included}"
            )));
        };
        for entry in entries {
            let entry = Included::read(&entry)?;
            let model = self.include(project, file, &entry)?;
            import(members, model)?;
        }
        Ok(())
    }

    fn include(&mut self, project: &Project<'_>, file: &str, entry: &Included) -> Result<Object> {
        let relative = match (&entry.directory, entry.paths.first()) {
            (Some(directory), _) => under("", directory),
            (None, Some(first)) => parent(first),
            (None, None) => return Ok(Object::new()),
        };
        let paths = entry.paths.iter();
        let paths: Vec<String> = paths.map(|path| under(project.directory, path)).collect();
        let mut chain = project.chain.to_vec();
        chain.push(under("", file));
        let first = paths.first().cloned().unwrap_or_default();
        if chain.len() > MAX_CHAIN {
            return Err(Error::new(format!(
                "{file} is included through more than {MAX_CHAIN} others"
            )));
        }
        if chain.contains(&first) {
            let rest = chain.get(1..).unwrap_or_default().iter().chain([&first]);
            let rest: Vec<String> = rest.map(|path| format!("\n include {path}")).collect();
            return Err(Error::new(format!(
                "include cycle detected:\n{}{}",
                chain.first().cloned().unwrap_or_default(),
                rest.concat()
            )));
        }
        let directory = match under(project.directory, &relative) {
            directory if directory == "." => String::new(),
            directory => directory,
        };
        let own = self.variables(project, entry, &directory)?;
        let variables = project.variables.with(own);
        let files = paths
            .into_iter()
            .map(|path| Ok((path.clone(), self.documents(&path)?)))
            .collect::<Result<Vec<_>>>()?;
        let inner = Project {
            directory: &directory,
            variables: &variables,
            chain: &chain,
        };
        self.model(&inner, files, &relative)
    }

    /// Returns the variables that a project that is included has beside those around it: those of its own files.
    fn variables(
        &mut self,
        project: &Project<'_>,
        entry: &Included,
        directory: &str,
    ) -> Result<BTreeMap<String, String>> {
        let mut own = BTreeMap::new();
        let default = [under(directory, ".env")];
        let files = match entry.env_files.as_slice() {
            [] => default.to_vec(),
            files => files
                .iter()
                .map(|path| under(project.directory, path))
                .collect(),
        };
        for path in files {
            match self.file(&path)? {
                Some(content) => {
                    let budget = &mut self.values;
                    dot_env::parse(&path, &content, project.variables, &mut own, budget)
                        .map_err(Error::new)?;
                }
                None if entry.env_files.is_empty() => {}
                None => return Err(Error::new(format!("couldn't find env file: {path}"))),
            }
        }
        Ok(own)
    }
}

/// Where a service extends others.
struct Extending<'a> {
    project: &'a Project<'a>,
    file: &'a str,
}

fn missing(path: &str) -> Error {
    Error::new(format!("open {path}: no such file or directory"))
}

fn documents(name: &str, content: &str) -> Result<Vec<Document>> {
    let parsed = whelk_yaml::parse_documents(content);
    parsed.map_err(|text| Error::new(format!("failed to parse {name}: yaml: {text}")))
}

/// Removes from a service that `name` extends what tags replace.
fn clear(service: &mut Object, name: &str, replaced: &[&Replaced]) {
    for path in replaced.iter().flat_map(|replaced| replaced.iter()) {
        if let [services, own, rest @ ..] = path.as_slice()
            && services == "services"
            && own == name
        {
            merge::remove(service, rest);
        }
    }
}

/// Returns which service is extended, and of which file.
fn reference(name: &str, extends: &Value) -> Result<(String, Option<String>)> {
    if let Some(service) = extends.as_str() {
        return Ok((service.to_owned(), None));
    }
    let service = extends.get("service").and_then(Value::as_str);
    let service = service
        .ok_or_else(|| Error::new(format!("extends.{name}.service is required")))?
        .to_owned();
    match extends.get("file") {
        None | Some(Value::Null) => Ok((service, None)),
        Some(Value::String(file)) => Ok((service, Some(file.clone()))),
        Some(_) => Err(Error::new(format!("extends.{name}.file must be a string"))),
    }
}

/// Adds a file and a service to those that extend each other.
fn linked(chain: &[(String, String)], link: (String, String)) -> Result<Vec<(String, String)>> {
    let is_circle = chain.contains(&link);
    if !is_circle && chain.len() == MAX_CHAIN {
        return Err(Error::new(format!(
            "service {} is extended through more than {MAX_CHAIN} others",
            link.1
        )));
    }
    let chain = [chain, &[link]].concat();
    if !is_circle {
        return Ok(chain);
    }
    let lines = chain.iter().enumerate().map(|(number, (file, service))| {
        let verb = if number == 0 { "" } else { "extends " };
        format!("\n  {verb}{service} in {file}")
    });
    let lines: Vec<String> = lines.collect();
    Err(Error::new(format!("Circular reference:{}", lines.concat())))
}

/// Returns how many values a value has in it.
fn nodes(value: &Value) -> usize {
    match value {
        Value::String(text) => 1 + text.len() / 64,
        Value::Array(items) => 1 + items.iter().map(nodes).sum::<usize>(),
        Value::Object(members) => 1 + members.values().map(nodes).sum::<usize>(),
        _ => 1,
    }
}

/// Adds resources to a document, which must not have other ones of their names.
fn import(members: &mut Object, model: Object) -> Result<()> {
    for (key, resources) in model {
        let own = members.entry(key.clone()).or_insert(Value::Null);
        if own.is_null() {
            *own = Value::Object(Object::new());
        }
        let (Value::Object(own), Value::Object(resources)) = (own, resources) else {
            continue;
        };
        for (name, resource) in resources {
            match own.get(&name) {
                Some(known) if *known == resource => {}
                Some(_) => {
                    return Err(Error::new(format!(
                        "{key}.{name} conflicts with imported resource"
                    )));
                }
                None => drop(own.insert(name, resource)),
            }
        }
    }
    Ok(())
}

/// An entry of `include`.
struct Included {
    paths: Vec<String>,
    directory: Option<String>,
    env_files: Vec<String>,
}

impl Included {
    fn read(entry: &Value) -> Result<Self> {
        if let Some(path) = entry.as_str() {
            return Ok(Self {
                paths: vec![path.to_owned()],
                directory: None,
                env_files: Vec::new(),
            });
        }
        let wrong = || Error::new("`include` must be a list of paths and mappings");
        let members = entry.as_object().ok_or_else(wrong)?;
        let known = ["path", "project_directory", "env_file"];
        if let Some(key) = members.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(Error::new(format!(
                "include additional properties '{key}' not allowed"
            )));
        }
        let texts = |key: &str| match members.get(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(items)) => {
                let items = items.iter().map(|item| scalar(item).ok_or_else(wrong));
                items.collect()
            }
            Some(single) => Ok(vec![scalar(single).ok_or_else(wrong)?]),
        };
        let directory = members.get("project_directory").and_then(scalar);
        Ok(Self {
            paths: texts("path")?,
            directory: directory.filter(|directory| !directory.is_empty()),
            env_files: texts("env_file")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Loads the first of these files, which may name the others.
    fn load(files: &[(&str, &str)]) -> Result<Object> {
        let read = |path: &str| {
            let found = files.iter().find(|(name, _)| *name == path);
            Ok(found.map(|(_, content)| (*content).to_owned()))
        };
        let (name, content) = files[0];
        let file = File {
            name: name.into(),
            content: content.into(),
        };
        let mut variables = Variables::new([("SHELL".to_owned(), "shell".to_owned())].into());
        Loader::new(&read, "/home/u").load(&[&file], &mut variables)
    }

    #[track_caller]
    fn refused(files: &[(&str, &str)], expected: &str) {
        let failed = load(files).unwrap_err().text;
        assert!(failed.contains(expected), "{failed}");
    }

    #[test]
    fn services_extend_others() {
        let model = load(&[
            (
                "a.yaml",
                "services:\n  a: {extends: {service: b, file: dir/b.yaml}, build: {args: !override {X: 1}}}\n",
            ),
            (
                "dir/b.yaml",
                "services:\n  b: {extends: {service: c, file: ../c.yaml}, build: {context: ./x, args: {Y: 2}}}\n",
            ),
            (
                "c.yaml",
                "services:\n  c: {build: {tags: ['${SHELL}'], labels: {l: m}}}\n",
            ),
        ]);
        let expected = serde_json::json!({"services": {"a": {"build": {
            "tags": ["shell"], "labels": {"l": "m"}, "context": "dir/x", "args": {"X": 1},
        }}}});
        assert_eq!(Value::Object(model.unwrap()), expected);
    }

    #[test]
    fn projects_include_others() {
        let model = load(&[
            (
                "a.yaml",
                "include: [one/b.yaml, {path: [one/b.yaml], project_directory: other, env_file: own.env}]\n",
            ),
            (
                "one/b.yaml",
                "include: [two/c.yaml]\nservices: {'b${N}': {image: '${V}-${SHELL}', build: .}}\n",
            ),
            ("one/.env", "V=one\nSHELL=not\n"),
            ("own.env", "V=own\n"),
            (
                "one/two/c.yaml",
                "secrets: {s: {file: ./key}}\nservices: {c: {build: ./d}}\n",
            ),
            ("other/two/c.yaml", "services: {}\n"),
        ]);
        // Keys have no variables, so both are the same service.
        let failed = model.unwrap_err().text;
        assert_eq!(failed, "services.b${N} conflicts with imported resource");
        let model = load(&[
            ("a.yaml", "include: [one/b.yaml]\n"),
            (
                "one/b.yaml",
                "include: [two/c.yaml]\nservices: {b: {image: '${V}-${SHELL}', build: .}}\n",
            ),
            ("one/.env", "V=one\nSHELL=not\n"),
            (
                "one/two/c.yaml",
                "secrets: {s: {file: ./key}}\nservices: {c: {build: ./d}}\n",
            ),
        ]);
        let expected = serde_json::json!({
            "services": {
                "b": {"image": "one-shell", "build": {"context": "one"}},
                "c": {"build": {"context": "one/two/d"}},
            },
            "secrets": {"s": {"file": "one/two/key"}},
        });
        assert_eq!(Value::Object(model.unwrap()), expected);
    }

    #[test]
    fn circles_and_sizes_are_bounded() {
        refused(
            &[(
                "a.yaml",
                "services:\n  a: {extends: b}\n  b: {extends: a}\n",
            )],
            "Circular reference:\n  a in a.yaml\n  extends b in a.yaml\n  extends a in a.yaml",
        );
        refused(
            &[
                ("a.yaml", "include: [b.yaml]\n"),
                ("b.yaml", "include: [./a.yaml]\n"),
            ],
            "include cycle detected:\na.yaml\n include b.yaml\n include a.yaml",
        );
        refused(
            &[("a.yaml", "include: [none.yaml]\n")],
            "open none.yaml: no such file or directory",
        );
        refused(
            &[("a.yaml", "services: {a: {extends: {service: x}}}\n")],
            "cannot extend service \"a\" in a.yaml: service \"x\" not found",
        );
        let many = format!("include: [{}]\n", "b.yaml, ".repeat(MAX_FILES));
        refused(
            &[("a.yaml", &*many), ("b.yaml", "services: {}\n")],
            "more than 1000 files are included, extended",
        );
        let chain: String = (0..100)
            .map(|number| format!("  s{number}: {{extends: s{}}}\n", number + 1))
            .collect();
        refused(
            &[(
                "a.yaml",
                &*format!("services:\n{chain}  s100: {{build: .}}\n"),
            )],
            "service s50 is extended through more than 50 others",
        );
        let tags = "x, ".repeat(20_000);
        let wide: String = (0..200)
            .map(|number| format!("  s{number}: {{extends: base}}\n"))
            .collect();
        let wide = format!("services:\n  base: {{build: {{tags: [{tags}]}}}}\n{wide}");
        refused(
            &[("a.yaml", &*wide)],
            "services that others extend are too large",
        );
    }

    #[test]
    fn variables_of_all_projects_are_bounded() {
        let values: String = (0..20)
            .map(|number| format!("V{}=${{V{number}}}${{V{number}}}\n", number + 1))
            .collect();
        let include = |number: usize| format!("include: [{number}/a.yaml]\n");
        let mut files = vec![("a.yaml".to_owned(), include(0))];
        let mut place = String::new();
        for number in 0..40 {
            place += &format!("{number}/");
            files.push((format!("{place}a.yaml"), include(number + 1)));
            let values = format!("V0=x\n{values}").replace('V', &format!("V{number}_"));
            files.push((format!("{place}.env"), values));
        }
        let files: Vec<(&str, &str)> = files
            .iter()
            .map(|(name, content)| (&**name, &**content))
            .collect();
        refused(&files, "values have more than");
    }

    #[test]
    fn a_file_of_many_services_is_read_once() {
        let reads = std::cell::Cell::new(0);
        let read = |path: &str| {
            reads.set(reads.get() + 1);
            Ok((path == "a.env").then(|| "x".repeat(MAX_BYTES / 2000)))
        };
        let mut loader = Loader::new(&read, "/home/u");
        for _ in 0..2000 {
            assert!(loader.env_file("a.env").unwrap().is_some());
        }
        assert_eq!(reads.get(), 1);
        for _ in 0..2000 {
            assert!(loader.env_file("none").unwrap().is_none());
        }
        assert_eq!(reads.get(), 2);
        let refused = loader.env_file("a.env").unwrap_err().text;
        assert!(
            refused.contains("have more than 67108864 bytes"),
            "{refused}"
        );
    }
}
