//! Checks of a Dockerfile: the rules with their texts, and which of them are skipped.

use std::collections::BTreeSet;

use crate::directive;
use crate::error::{Error, Lines, Result};

macro_rules! rules {
    ($($rule:ident $page:literal $description:literal;)*) => {
        /// A rule. Its name is that of BuildKit's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Rule {
            $($rule),*
        }

        impl Rule {
            pub const ALL: &[Self] = &[$(Self::$rule),*];

            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$rule => stringify!($rule)),*
                }
            }

            pub fn description(self) -> &'static str {
                match self {
                    $(Self::$rule => $description),*
                }
            }

            /// Returns the last part of the address of the rule's documentation.
            fn page(self) -> &'static str {
                match self {
                    $(Self::$rule => $page),*
                }
            }
        }
    };
}

rules! {
    StageNameCasing "stage-name-casing" "Stage names should be lowercase";
    FromAsCasing "from-as-casing" "The 'as' keyword should match the case of the 'from' keyword";
    NoEmptyContinuation "no-empty-continuation"
        "Empty continuation lines will become errors in a future release";
    ConsistentInstructionCasing "consistent-instruction-casing"
        "All commands within the Dockerfile should use the same casing (either upper or lower)";
    DuplicateStageName "duplicate-stage-name" "Stage names should be unique";
    ReservedStageName "reserved-stage-name" "Reserved words should not be used as stage names";
    JSONArgsRecommended "json-args-recommended"
        "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals";
    MaintainerDeprecated "maintainer-deprecated"
        "The MAINTAINER instruction is deprecated, use a label instead to define an image author";
    UndefinedArgInFrom "undefined-arg-in-from" "FROM command must use declared ARGs";
    WorkdirRelativePath "workdir-relative-path"
        "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes";
    UndefinedVar "undefined-var" "Variables should be defined before their use";
    MultipleInstructionsDisallowed "multiple-instructions-disallowed"
        "Multiple instructions of the same type should not be used in the same stage";
    LegacyKeyValueFormat "legacy-key-value-format"
        "Legacy key/value format with whitespace separator should not be used";
    InvalidBaseImagePlatform "" "Base image platform does not match expected target platform";
    RedundantTargetPlatform "redundant-target-platform"
        "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior";
    SecretsUsedInArgOrEnv "secrets-used-in-arg-or-env"
        "Sensitive data should not be used in the ARG or ENV commands";
    InvalidDefaultArgInFrom "invalid-default-arg-in-from"
        "Default value for global ARG results in an empty or invalid base image name";
    FromPlatformFlagConstDisallowed "from-platform-flag-const-disallowed"
        "FROM --platform flag should not use a constant value";
    CopyIgnoredFile "copy-ignored-file" "Attempting to Copy file that is excluded by .dockerignore";
    InvalidDefinitionDescription "invalid-definition-description"
        "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not intended to be a description comment, add an empty line or comment between the instruction and the comment.";
    ExposeProtoCasing "expose-proto-casing" "Protocol in EXPOSE instruction should be lowercase";
    ExposeInvalidFormat "expose-invalid-format"
        "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release";
}

impl Rule {
    /// Returns the address of the rule's documentation, or an empty text.
    pub fn url(self) -> String {
        match self.page() {
            "" => String::new(),
            page => format!("https://docs.docker.com/go/dockerfile/rule/{page}/"),
        }
    }

    /// Whether the rule is only checked on request.
    pub fn is_experimental(self) -> bool {
        self == Self::InvalidDefinitionDescription
    }
}

/// Which rules are checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    pub skip_all: bool,
    pub skip: BTreeSet<String>,
    pub experimental_all: bool,
    pub experimental: BTreeSet<String>,
    /// Whether a warning makes the build fail.
    pub error: bool,
}

impl Config {
    /// Parses `skip=RULE,…;error=true;experimental=RULE,…`, with `all` for all rules.
    ///
    /// # Errors
    /// Returns an error for an unknown option.
    pub fn parse(text: &str) -> Result<Self> {
        let mut config = Self::default();
        let text = text.trim();
        if text.is_empty() {
            return Ok(config);
        }
        let rules = |value: &str| -> BTreeSet<String> {
            let rules = value.split(',').map(str::trim);
            rules.map(str::to_owned).collect()
        };
        for part in text.splitn(3, ';') {
            let Some((key, value)) = part.split_once('=') else {
                return Err(Error::new(format!("invalid check option {part:?}")));
            };
            let value = value.trim();
            match key.trim() {
                "skip" if value == "all" => config.skip_all = true,
                "skip" => config.skip = rules(value),
                "experimental" if value == "all" => config.experimental_all = true,
                "experimental" => config.experimental = rules(value),
                "error" => {
                    config.error = whelk_text::parse_bool(value).ok_or_else(|| {
                        Error::new(format!(
                            "failed to parse check option {part:?}: strconv.ParseBool: parsing {value:?}: invalid syntax"
                        ))
                    })?;
                }
                key => return Err(Error::new(format!("invalid check option {key:?}"))),
            }
        }
        Ok(config)
    }

    /// Returns the configuration that the directive `check` of a Dockerfile asks for.
    ///
    /// # Errors
    /// Returns an error for an unknown option.
    pub fn of_file(text: &str) -> Result<Self> {
        let Some(found) = directive::find("check", text, "#") else {
            return Ok(Self::default());
        };
        let options = found.value.split(' ').next().unwrap_or_default();
        Self::parse(options).map_err(|error| error.context("failed to parse check options"))
    }

    fn allows(&self, rule: Rule) -> bool {
        let is_asked_for = self.experimental_all || self.experimental.contains(rule.name());
        if rule.is_experimental() {
            is_asked_for
        } else {
            // Docker 28 has this one among those that are only checked on request, which `skip` does not concern.
            let is_asked_for = is_asked_for && rule == Rule::CopyIgnoredFile;
            is_asked_for || !self.skip_all && !self.skip.contains(rule.name())
        }
    }
}

/// A violation of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    pub rule: Rule,
    pub detail: String,
    pub lines: Lines,
}

impl Warning {
    /// Returns the text that is shown during a build.
    pub fn short(&self) -> String {
        let name = self.rule.name();
        let Self { detail, lines, .. } = self;
        if lines.first == 0 {
            format!("{name}: {detail}")
        } else {
            format!("{name}: {detail} (line {})", lines.first)
        }
    }
}

/// Collects warnings.
#[derive(Clone, Debug, Default)]
pub struct Linter {
    pub config: Config,
    pub warnings: Vec<Warning>,
}

impl Linter {
    pub fn new(config: Config) -> Self {
        Self {
            config,
            warnings: Vec::new(),
        }
    }

    /// Adds a warning, unless its rule is skipped, by the file or by a comment above the instruction.
    pub(crate) fn warn(&mut self, comments: &[String], rule: Rule, lines: Lines, detail: String) {
        let above = comments
            .iter()
            .find_map(|comment| directive::check_in_comment(comment));
        let allowed =
            match above.map(|text| Config::parse(text.split(' ').next().unwrap_or_default())) {
                Some(Ok(above)) if rule.is_experimental() => {
                    self.config.allows(rule) || above.allows(rule)
                }
                Some(Ok(above)) => self.config.allows(rule) && above.allows(rule),
                _ => self.config.allows(rule),
            };
        if allowed {
            self.warnings.push(Warning {
                rule,
                detail,
                lines,
            });
        }
    }

    /// # Errors
    /// Returns an error if there are warnings, and they are to be errors.
    pub fn check(&self) -> Result<()> {
        if !self.config.error || self.warnings.is_empty() {
            return Ok(());
        }
        let rules: BTreeSet<Rule> = self.warnings.iter().map(|warning| warning.rule).collect();
        let names: Vec<&str> = rules.into_iter().map(Rule::name).collect();
        Err(Error::new(format!(
            "lint violation found for rules: {}",
            names.join(", ")
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_options() {
        let config = Config::parse("skip=A, B;error=true;experimental=all").unwrap_or_default();
        assert!(config.skip.contains("B") && config.error && config.experimental_all);
        let config = Config::of_file("# escape=`\n# check=skip=all;error=1 x\nFROM x");
        assert!(config.is_ok_and(|config| config.skip_all && config.error));
        for (text, expected) in [
            ("x", "invalid check option \"x\""),
            ("x=y", "invalid check option \"x\""),
        ] {
            assert_eq!(Config::parse(text).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn a_rule_that_docker_checks_on_request_is_not_skipped_then() {
        for (text, expected) in [
            ("", true),
            ("skip=all", false),
            ("skip=CopyIgnoredFile", false),
            ("skip=all;experimental=CopyIgnoredFile", true),
            ("skip=all;experimental=all", true),
        ] {
            let config = Config::parse(text).unwrap_or_default();
            assert_eq!(config.allows(Rule::CopyIgnoredFile), expected, "{text}");
        }
        let config = Config::parse("skip=all;experimental=all").unwrap_or_default();
        assert!(!config.allows(Rule::FromAsCasing));
    }

    #[test]
    fn skips_rules() {
        let mut linter = Linter::new(Config::parse("skip=StageNameCasing").unwrap_or_default());
        let comments = ["check=skip=FromAsCasing".to_owned(), "other".to_owned()];
        let here = Lines::new(3, 3);
        let mut warn = |comments: &[String], rule| linter.warn(comments, rule, here, "x".into());
        warn(&[], Rule::StageNameCasing);
        warn(&comments, Rule::FromAsCasing);
        warn(&[], Rule::FromAsCasing);
        warn(&[], Rule::InvalidDefinitionDescription);
        warn(
            &["check=experimental=all".to_owned()],
            Rule::InvalidDefinitionDescription,
        );
        let shown: Vec<String> = linter.warnings.iter().map(Warning::short).collect();
        assert_eq!(
            shown,
            [
                "FromAsCasing: x (line 3)",
                "InvalidDefinitionDescription: x (line 3)"
            ]
        );
        assert!(linter.check().is_ok());
        linter.config.error = true;
        assert_eq!(
            linter.check().unwrap_err().to_string(),
            "lint violation found for rules: FromAsCasing, InvalidDefinitionDescription"
        );
    }
}
