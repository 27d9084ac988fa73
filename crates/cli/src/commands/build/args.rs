//! The flags of `build`.

use clap::Args;

#[derive(Clone, Debug, Args)]
pub(crate) struct BuildArgs {
    /// Add a custom host-to-IP mapping (format: `host:ip`)
    #[arg(long, value_delimiter = ',')]
    pub add_host: Vec<String>,
    /// Allow an extra right of the build (`network.host`, `security.insecure`, `device`)
    #[arg(long)]
    pub allow: Vec<String>,
    /// Add annotation to the image
    #[arg(long)]
    pub annotation: Vec<String>,
    /// Attestation parameters (format: `type=sbom,generator=image`)
    #[arg(long)]
    pub attest: Vec<String>,
    /// Set build-time variables
    #[arg(long)]
    pub build_arg: Vec<String>,
    /// Additional build contexts (e.g., `name=path`)
    #[arg(long)]
    pub build_context: Vec<String>,
    /// Override the configured builder instance; there is one, `default`
    #[arg(long, default_value = "", hide_default_value = true)]
    pub builder: String,
    /// External cache sources (e.g., `user/app:cache`)
    #[arg(long)]
    pub cache_from: Vec<String>,
    /// Cache export destinations (e.g., `type=local,dest=path/to/dir`)
    #[arg(long)]
    pub cache_to: Vec<String>,
    /// Set method for evaluating build (`check`, `outline`, `targets`)
    #[arg(long, default_value = "build")]
    pub call: String,
    /// Set the parent cgroup for the `RUN` instructions during build
    #[arg(long, default_value = "", hide_default_value = true)]
    pub cgroup_parent: String,
    /// Shorthand for `--call=check`
    #[arg(long)]
    pub check: bool,
    /// Enable debug logging
    #[arg(short = 'D', long)]
    pub debug: bool,
    /// Say of each step that was not cached which of its inputs is another one than at its last build
    #[arg(long)]
    pub explain: bool,
    /// Name of the Dockerfile (default: `PATH/Dockerfile`)
    #[arg(short, long, default_value = "", hide_default_value = true)]
    pub file: String,
    /// Write the image ID to a file
    #[arg(long, default_value = "", hide_default_value = true)]
    pub iidfile: String,
    /// Set metadata for an image
    #[arg(long)]
    pub label: Vec<String>,
    /// Shorthand for `--output=type=docker`
    #[arg(long)]
    pub load: bool,
    /// Write build result metadata to a file
    #[arg(long, default_value = "", hide_default_value = true)]
    pub metadata_file: String,
    /// Set the networking mode for the `RUN` instructions during build
    #[arg(long, default_value = "default")]
    pub network: String,
    /// Do not use cache when building the image
    #[arg(long)]
    pub no_cache: bool,
    /// Do not cache specified stages
    #[arg(long)]
    pub no_cache_filter: Vec<String>,
    /// What to do when a step fails: `shell` opens a shell in its state
    #[arg(long, default_value = "", hide_default_value = true)]
    pub on_error: String,
    /// Output destination (format: `type=local,dest=path`)
    #[arg(short, long)]
    pub output: Vec<String>,
    /// Set target platform for build
    #[arg(long, value_delimiter = ',')]
    pub platform: Vec<String>,
    /// Set type of progress output (`auto`, `none`, `plain`, `quiet`, `rawjson`, `tty`). Use `plain` to show container output
    #[arg(long, default_value = "auto")]
    pub progress: String,
    /// Shorthand for `--attest=type=provenance`
    #[arg(long, default_value = "", hide_default_value = true)]
    pub provenance: String,
    /// Always attempt to pull all referenced images
    #[arg(long)]
    pub pull: bool,
    /// Shorthand for `--output=type=registry`
    #[arg(long)]
    pub push: bool,
    /// Suppress the build output and print image ID on success
    #[arg(short, long)]
    pub quiet: bool,
    /// Shorthand for `--attest=type=sbom`
    #[arg(long, default_value = "", hide_default_value = true)]
    pub sbom: String,
    /// Secret to expose to the build (format: `id=mysecret[,src=/local/secret]`)
    #[arg(long)]
    pub secret: Vec<String>,
    /// Shared memory size for build containers
    #[arg(long, default_value = "", hide_default_value = true)]
    pub shm_size: String,
    /// SSH agent socket or keys to expose to the build
    #[arg(long)]
    pub ssh: Vec<String>,
    /// Name and optionally a tag (format: `name:tag`)
    #[arg(short, long)]
    pub tag: Vec<String>,
    /// Set the target build stage to build
    #[arg(long, default_value = "", hide_default_value = true)]
    pub target: String,
    /// Ulimit options
    #[arg(long)]
    pub ulimit: Vec<String>,
    /// The Dockerfile itself, of a bake file's target.
    #[arg(skip)]
    pub inline: Option<String>,
    /// Whether the context is an input of the request, of a bake file's target.
    #[arg(skip)]
    pub is_input: bool,
    // The scripts of classic builds have these, and BuildKit has no containers to keep and always compresses.
    /// Remove intermediate containers: there are none
    #[arg(long, hide = true)]
    pub rm: bool,
    /// Remove intermediate containers: there are none
    #[arg(long, hide = true)]
    pub force_rm: bool,
    /// Compress the context: it is not sent as an archive
    #[arg(long, hide = true)]
    pub compress: bool,
    /// Memory limit of the `RUN` instructions
    #[arg(
        short,
        long,
        hide = true,
        default_value = "",
        hide_default_value = true
    )]
    pub memory: String,
    /// Limit of memory and swap together: -1 for no limit
    #[arg(
        long,
        hide = true,
        default_value = "",
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    pub memory_swap: String,
    /// CPU shares (relative weight)
    #[arg(short, long, hide = true, default_value_t = 0)]
    pub cpu_shares: i64,
    /// Limit the CPU CFS period
    #[arg(long, hide = true, default_value_t = 0)]
    pub cpu_period: i64,
    /// Limit the CPU CFS quota
    #[arg(long, hide = true, default_value_t = 0)]
    pub cpu_quota: i64,
    /// CPUs in which to allow execution (`0-3`, `0,1`)
    #[arg(long, hide = true, default_value = "", hide_default_value = true)]
    pub cpuset_cpus: String,
    /// Memory nodes in which to allow execution (`0-3`, `0,1`)
    #[arg(long, hide = true, default_value = "", hide_default_value = true)]
    pub cpuset_mems: String,
    /// Container isolation technology
    #[arg(long, hide = true, default_value = "", hide_default_value = true)]
    pub isolation: String,
    /// Security options
    #[arg(long, hide = true)]
    pub security_opt: Vec<String>,
    /// Squash newly built layers into a single new layer
    #[arg(long, hide = true)]
    pub squash: bool,
    /// Directory, `-` for an archive or a Dockerfile on the standard input, or URL
    #[arg(value_name = "PATH | URL | -")]
    pub context: String,
}
