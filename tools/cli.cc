#include "tools/cli.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <cctype>
#include <exception>
#include <map>
#include <memory>
#include <utility>

namespace weightfs {
namespace {

constexpr const char* kDescription =
    "Mounts models of a Hugging Face Hub, or a local folder, without\n"
    "downloading them: only what is read is fetched, and kept in a cache.";

// The whole help is to fit 80 columns and 40 lines; a test measures it.
constexpr const char* kFooter =
    R"(SOURCE is org/name[@revision], or a local path that starts with / or ./

Examples:
  weightfs mount openai-community/gpt2 /mnt/gpt2
  weightfs ls ./model.safetensors
  weightfs cat openai-community/gpt2 wte.weight --format npy -o wte.npy
  weightfs umount /mnt/gpt2

Environment: WEIGHTFS_CACHE, HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HOME,
HF_HUB_OFFLINE, HF_HUB_ETAG_TIMEOUT, HF_HUB_DOWNLOAD_TIMEOUT as the Hub's own.

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 not found; 4 denied (token,
gated, permission); 5 unavailable (network, offline and not cached); 6 corrupt;
7 not supported; 128 + N ended by signal N.)";

constexpr const char* kMountFooter =
    R"(Returns once the mount serves; the daemon goes on in the background. A mount
left by a crash is replaced. End it with `weightfs umount MOUNTPOINT`.

Example: weightfs mount openai-community/gpt2@main /mnt/gpt2)";

constexpr const char* kCatFooter =
    R"(Example: weightfs cat ./model.safetensors lm_head.weight -f pt > head.pt)";

constexpr const char* kVerifyFooter =
    R"(Prints ok, wrong, missing or partial, size and path of each file, read from the
disk. What is wrong is dropped, and fetched again when it is read.

Exit codes: 0 all of it is there and right; 6 something was wrong; 5 nothing
was, but something is not cached (with --cache, that is no matter: 0).

Example: weightfs verify openai-community/gpt2)";

constexpr const char* kWarmFooter =
    R"(Fetches into the cache what is not there yet, and checks the hashes of whole
files. Works beside mounts; what came stays, whatever ends it.

Exit codes: 0 all of it is cached (--check: and was before); 5 not all is, since
the network failed or, with --check, it was not fetched; 1 it does not fit.

Example: weightfs warm openai-community/gpt2 --tensors 'h.0.*')";

class HelpFormatter final : public CLI::Formatter {
 public:
  HelpFormatter() { column_width(27); }

  // Option types add nothing here: each option names its value.
  std::string make_option_opts(const CLI::Option* option) const override {
    return option->get_type_size() == 0 || option->get_positional()
               ? ""
               : " " + option->get_type_name();
  }
};

void AddCacheFolder(CLI::App* command, Flags* flags) {
  command
      ->add_option("--cache-dir", flags->cache_dir,
                   "where to keep what was fetched")
      ->type_name("DIR");
}

void AddHubOptions(CLI::App* command, Flags* flags) {
  command
      ->add_option("--endpoint", flags->endpoint, "the Hub, or a mirror of it")
      ->type_name("URL");
  command->add_flag("--offline", flags->offline,
                    "ask nobody; serve what the cache holds");
  command
      ->add_option("--token-file", flags->token_file,
                   "take the Hub's token from here alone")
      ->type_name("FILE");
  command
      ->add_option("--metadata-timeout", flags->metadata_timeout,
                   "a listing fails after this [30s]")
      ->type_name("TIME");
}

void AddLogOptions(CLI::App* command, Flags* flags) {
  command->add_option("--log-file", flags->log_file, "log to this file")
      ->type_name("FILE");
  command
      ->add_option("--log-level", flags->log_level,
                   "debug, info, warning or error")
      ->type_name("LEVEL");
}

void AddSourceOptions(CLI::App* command, Flags* flags) {
  AddCacheFolder(command, flags);
  command
      ->add_option("--cache-size", flags->cache_size,
                   "keep no more than this, 50G for one")
      ->type_name("SIZE");
  command
      ->add_option("--cache-keep-free", flags->cache_keep_free,
                   "leave this much of the disk free [2G or 5 %]")
      ->type_name("SIZE");
  AddHubOptions(command, flags);
  command
      ->add_option("--max-rate", flags->max_rate,
                   "fetch no more than this per second, 50M for one")
      ->type_name("SIZE");
  command
      ->add_option("--read-timeout", flags->read_timeout,
                   "a read fails after this [300s]")
      ->type_name("TIME");
  AddLogOptions(command, flags);
}

void AddSource(CLI::App* command, Flags* flags) {
  command
      ->add_option("SOURCE", flags->source,
                   "org/name[@revision], or a local path")
      ->required();
}

void AddMount(CLI::App* app, Flags* flags) {
  CLI::App* mount = app->add_subcommand("mount", "mount a model");
  AddSource(mount, flags);
  mount->add_option("MOUNTPOINT", flags->mountpoint, "a folder that is there")
      ->required();
  mount->add_flag("--foreground", flags->foreground,
                  "stay, and log to standard error");
  mount->add_flag("--allow-other", flags->allow_other,
                  "let other users read it");
  mount->add_flag("--share-private", flags->share_private,
                  "also where it is private or gated");
  mount
      ->add_option("--verify", flags->verify,
                   "strict: give no byte before its whole file is\n"
                   "fetched and its hash was right [background]")
      ->type_name("HOW");
  mount
      ->add_option("--read-ahead-kb", flags->read_ahead_kb,
                   "the kernel's read-ahead, if permitted [4096]")
      ->type_name("KIB");
  AddSourceOptions(mount, flags);
  mount->footer(kMountFooter);
}

void AddUmount(CLI::App* app, Flags* flags) {
  CLI::App* umount =
      app->add_subcommand("umount", "unmount, also what a crash left");
  umount->add_option("MOUNTPOINT", flags->mountpoint, "where it is mounted")
      ->required();
  umount->add_flag("-z,--lazy", flags->lazy,
                   "detach now, end when its last user is gone");
  umount->add_flag("-f,--force", flags->force,
                   "end it in 5 s whatever hangs; its readers get errors");
  umount
      ->add_option("--cache-dir", flags->cache_dir,
                   "that of the mount, where XDG_RUNTIME_DIR is not set")
      ->type_name("DIR");
}

void AddLs(CLI::App* app, Flags* flags) {
  CLI::App* ls = app->add_subcommand("ls", "list a model's tensors");
  AddSource(ls, flags);
  ls->add_flag("-a,--all", flags->all,
               "of all weight sets, not the shown ones");
  ls->add_flag("--json", flags->json, "as JSON");
  AddSourceOptions(ls, flags);
}

void AddInfo(CLI::App* app, Flags* flags) {
  CLI::App* info =
      app->add_subcommand("info", "say what a repository or folder holds");
  AddSource(info, flags);
  info->add_flag("--json", flags->json, "as JSON");
  AddSourceOptions(info, flags);
}

void AddCat(CLI::App* app, Flags* flags) {
  CLI::App* cat =
      app->add_subcommand("cat", "write one tensor to standard output");
  AddSource(cat, flags);
  cat->add_option("TENSOR", flags->tensor, "its name, as ls prints it")
      ->required();
  cat->add_option("-f,--format", flags->format,
                  "raw, npy, pt or safetensors [raw]")
      ->type_name("FORMAT");
  cat->add_option("-o,--output", flags->output,
                  "to this file, which appears when it is whole")
      ->type_name("FILE");
  cat->add_option("--set", flags->set, "of this weight set (info lists them)")
      ->type_name("PATH");
  AddSourceOptions(cat, flags);
  cat->footer(kCatFooter);
}

void AddVerify(CLI::App* app, Flags* flags) {
  CLI::App* verify =
      app->add_subcommand("verify", "check what is cached against its hashes");
  verify->add_option("SOURCE", flags->source, "org/name[@revision]");
  verify->add_flag("--cache", flags->whole_cache,
                   "everything in the cache instead; asks nobody");
  verify->add_flag("--json", flags->json, "as JSON");
  AddCacheFolder(verify, flags);
  AddHubOptions(verify, flags);
  AddLogOptions(verify, flags);
  verify->footer(kVerifyFooter);
}

void AddWarm(CLI::App* app, Flags* flags) {
  CLI::App* warm =
      app->add_subcommand("warm", "fetch a model into the cache, or drop it");
  warm->add_option("SOURCE", flags->source, "org/name[@revision]")->required();
  warm->add_option("--tensors", flags->tensors,
                   "only those whose names, as ls prints them,\n"
                   "match; and headers and small files. More than\n"
                   "one: more of them")
      ->type_name("GLOB")
      ->allow_extra_args(false);
  warm->add_option("--order", flags->order,
                   "learned: as a mount's readers read it before,\n"
                   "if they did [learned], or file")
      ->type_name("HOW");
  warm->add_flag("--check", flags->check,
                 "say how much is cached; fetch nothing");
  warm->add_flag("--evict", flags->evict, "drop what is cached and not in use");
  warm->add_flag("--json", flags->json, "as JSON");
  AddSourceOptions(warm, flags);
  warm->footer(kWarmFooter);
}

void AddStatus(CLI::App* app, Flags* flags) {
  CLI::App* status =
      app->add_subcommand("status", "list running mounts, or look into one");
  status->add_option("MOUNTPOINT", flags->mountpoint, "this one");
  status->add_flag("--json", flags->json, "as JSON");
  status
      ->add_option("--cache-dir", flags->cache_dir,
                   "that of the mounts, where XDG_RUNTIME_DIR is not set")
      ->type_name("DIR");
}

// CLI11's messages: "SOURCE is required", of several lines at times.
std::string OneLine(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  while (!text.empty() && text.back() == ' ') text.pop_back();
  return text;
}

std::string CommandNamed(const CLI::App& app) {
  const auto used = app.get_subcommands();
  return used.empty() ? "" : used.front()->get_name() + " ";
}

}  // namespace

Result<std::variant<Invocation, std::string>> ParseCommandLine(
    int argc, const char* const* argv) {
  Flags flags;
  CLI::App app(kDescription, "weightfs");
  app.formatter(std::make_shared<HelpFormatter>());
  app.set_help_flag("-h,--help", "print this help");
  app.set_version_flag("--version", "weightfs " WEIGHTFS_VERSION,
                       "print the version");
  app.require_subcommand(1);
  app.footer(kFooter);
  AddMount(&app, &flags);
  AddUmount(&app, &flags);
  AddLs(&app, &flags);
  AddInfo(&app, &flags);
  AddCat(&app, &flags);
  AddVerify(&app, &flags);
  AddWarm(&app, &flags);
  AddStatus(&app, &flags);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    const auto used = app.get_subcommands();
    return used.empty() ? app.help() : used.front()->help("weightfs");
  } catch (const CLI::CallForVersion& version) {
    return std::string(version.what()) + "\n";
  } catch (const CLI::ParseError& error) {
    return MakeError(Code::kInvalid, "{}; see weightfs {}--help",
                     OneLine(error.what()), CommandNamed(app));
  }
  static const std::map<std::string, Command> kCommands = {
      {"mount", Command::kMount}, {"umount", Command::kUmount},
      {"ls", Command::kLs},       {"info", Command::kInfo},
      {"cat", Command::kCat},     {"verify", Command::kVerify},
      {"warm", Command::kWarm},   {"status", Command::kStatus},
  };
  return Invocation{kCommands.at(app.get_subcommands().front()->get_name()),
                    std::move(flags)};
}

}  // namespace weightfs
