//! Qualified names of CDI devices: `VENDOR/CLASS=NAME`.

/// Returns whether a text is a qualified name, and not the path of a device node.
pub fn is_qualified(text: &str) -> bool {
    text.split_once('=')
        .is_some_and(|(kind, name)| check_kind(kind).is_ok() && check_name(name).is_ok())
}

/// Checks a kind of devices, `VENDOR/CLASS`.
///
/// # Errors
/// Returns the text of the reference library.
pub fn check_kind(kind: &str) -> Result<(), String> {
    let (vendor, class) = match kind.split_once('/') {
        Some((vendor, class)) if !vendor.is_empty() && !class.is_empty() => (vendor, class),
        _ => ("", kind),
    };
    check_part(vendor).map_err(|error| format!("invalid vendor. {error}"))?;
    check_part(class).map_err(|error| format!("invalid class. {error}"))
}

fn check_part(name: &str) -> Result<(), String> {
    let Some(first) = name.chars().next() else {
        return Err("empty name".into());
    };
    if !first.is_ascii_alphabetic() {
        return Err(format!("{name:?}, should start with letter"));
    }
    if let Some(wrong) = name.chars().find(|&letter| !is_part_of_name(letter)) {
        return Err(format!("invalid character '{wrong}' in name {name:?}"));
    }
    if !name.ends_with(|last: char| last.is_ascii_alphanumeric()) {
        return Err(format!("{name:?}, should end with a letter or digit"));
    }
    Ok(())
}

/// Checks a device's name within its kind.
///
/// # Errors
/// Returns the text of the reference library.
pub fn check_name(name: &str) -> Result<(), String> {
    let Some(first) = name.chars().next() else {
        return Err("invalid (empty) device name".into());
    };
    if !first.is_ascii_alphanumeric() {
        return Err(format!(
            "invalid class {name:?}, should start with a letter or digit"
        ));
    }
    if let Some(wrong) = name
        .chars()
        .find(|&letter| !is_part_of_name(letter) && letter != ':')
    {
        return Err(format!(
            "invalid character '{wrong}' in device name {name:?}"
        ));
    }
    if !name.ends_with(|last: char| last.is_ascii_alphanumeric()) {
        return Err(format!(
            "invalid name {name:?}, should end with a letter or digit"
        ));
    }
    Ok(())
}

fn is_part_of_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-' | '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_no_qualified_names() {
        for name in ["nvidia.com/gpu=all", "vendor.com/class=0", "v/c_d=gpu:0-1"] {
            assert!(is_qualified(name), "{name}");
        }
        for name in [
            "/dev/a=b",
            "/dev/null",
            "vendor.com/gpu",
            "vendor.com/gpu=",
            "gpu=0",
            "1/c=x",
            "v/c=x-",
            "v/c/d=x",
            "v/=x",
            "",
        ] {
            assert!(!is_qualified(name), "{name}");
        }
    }
}
