// The test hub's control endpoint: what TestHub's functions do, as JSON, for
// programs in other languages. POST /_control {"op": …}; answers 200 and an
// object, or 400 and {"error": …}. Its requests are not logged.

#include <chrono>
#include <optional>
#include <string>
#include <utility>

#include "nlohmann/json.hpp"
#include "tests/support/hub_state.h"

namespace weightfs {
namespace {

using Json = nlohmann::json;
using std::chrono::milliseconds;

std::string Text(const Json& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && found->is_string() ? found->get<std::string>()
                                                   : "";
}

uint64_t Number(const Json& json, const char* key, uint64_t otherwise) {
  const auto found = json.find(key);
  return found != json.end() && found->is_number_unsigned()
             ? found->get<uint64_t>()
             : otherwise;
}

bool Flag(const Json& json, const char* key, bool otherwise) {
  const auto found = json.find(key);
  return found != json.end() && found->is_boolean() ? found->get<bool>()
                                                    : otherwise;
}

milliseconds Milliseconds(const Json& json, const char* key,
                          milliseconds otherwise) {
  return milliseconds(
      Number(json, key, static_cast<uint64_t>(otherwise.count())));
}

TestHubListener ListenerOf(const Json& json) {
  const std::string name = Text(json, "listener");
  if (name == "hub") return TestHubListener::kHub;
  if (name == "cdn") return TestHubListener::kCdn;
  return TestHubListener::kAny;
}

TestHubFilter FilterOf(const Json& json) {
  return {.listener = ListenerOf(json),
          .method = Text(json, "method"),
          .contains = Text(json, "contains"),
          .status = static_cast<int>(Number(json, "status", 0))};
}

Json RequestJson(const TestHubRequest& request) {
  Json headers = Json::object();
  for (const auto& [name, value] : request.headers) headers[name] = value;
  return {
      {"id", request.id},
      {"connection", request.connection},
      {"unix_ms", request.unix_ms},
      {"listener", request.listener == TestHubListener::kCdn ? "cdn" : "hub"},
      {"method", request.method},
      {"path", request.path},
      {"query", request.query},
      {"repo", request.repo},
      {"file", request.file},
      {"range", request.range},
      {"authorization", request.authorization},
      {"headers", std::move(headers)},
      {"status", request.status},
      {"body_bytes", request.body_bytes},
      {"done", request.done},
      {"fault", request.fault}};
}

// Names and header values are the client's: they may be no UTF-8.
std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Json Settings(TestHub::State& hub, const Json& json) {
  hub.Configure([&json](TestHubSettings& settings) {
    settings.latency = Milliseconds(json, "latency_ms", settings.latency);
    settings.bytes_per_second =
        Number(json, "bytes_per_second", settings.bytes_per_second);
    settings.sendfile = Flag(json, "sendfile", settings.sendfile);
    settings.tree_page_size =
        Number(json, "tree_page_size", settings.tree_page_size);
    if (json.contains("next_page_origin")) {
      settings.next_page_origin = Text(json, "next_page_origin");
    }
    settings.signature_lifetime = std::chrono::seconds(
        Number(json, "signature_lifetime_s",
               static_cast<uint64_t>(settings.signature_lifetime.count())));
    settings.head_without_size =
        Flag(json, "head_without_size", settings.head_without_size);
    settings.tree_has_pointer_size =
        Flag(json, "tree_has_pointer_size", settings.tree_has_pointer_size);
  });
  return Json::object();
}

std::optional<Json> AddFault(TestHub::State& hub, const Json& json) {
  const std::string name = Text(json, "kind");
  TestHubFault fault;
  if (name == "refuse_signature") {
    fault = TestHubFault::RefuseSignature();
  } else if (const auto kind = ParseTestHubFaultKind(name)) {
    fault.kind = *kind;
  } else {
    return std::nullopt;
  }
  if (json.contains("listener")) fault.filter.listener = ListenerOf(json);
  fault.filter.method = Text(json, "method");
  fault.filter.contains = Text(json, "contains");
  fault.skip = Number(json, "skip", 0);
  fault.times = Number(json, "times", fault.times);
  fault.number = Number(json, "number", fault.number);
  if (json.contains("text")) fault.text = Text(json, "text");
  fault.value = Text(json, "value");
  fault.delay = Milliseconds(json, "delay_ms", fault.delay);
  if (const auto headers = json.find("headers");
      headers != json.end() && headers->is_object()) {
    for (const auto& [key, value] : headers->items()) {
      if (value.is_string()) {
        fault.headers.emplace_back(key, value.get<std::string>());
      }
    }
  }
  if (Flag(json, "ranged", false)) {
    fault.predicate = [](const TestHubRequest& request) {
      return !request.range.empty();
    };
  }
  return Json{{"id", hub.AddFault(std::move(fault))}};
}

Json Log(const TestHub::State& hub, const Json& json) {
  Json requests = Json::array();
  for (const TestHubRequest& request : hub.Requests(FilterOf(json))) {
    requests.push_back(RequestJson(request));
  }
  return {{"requests", std::move(requests)}};
}

void SetRepo(TestHub::State& hub, const Json& json) {
  TestHubRepoOptions options;
  options.is_private = Flag(json, "private", false);
  options.gated = Flag(json, "gated", false);
  options.disabled = Flag(json, "disabled", false);
  if (const auto readers = json.find("readers");
      readers != json.end() && readers->is_array()) {
    for (const Json& token : *readers) {
      if (token.is_string()) options.readers.insert(token.get<std::string>());
    }
  }
  hub.SetRepo(Text(json, "repo"), std::move(options));
}

// From a folder on disk ("folder") or a made-up model ("generate").
Result<std::string> Commit(TestHub::State& hub, const Json& json) {
  const std::string branch =
      json.contains("branch") ? Text(json, "branch") : "main";
  std::vector<TestHubFile> files;
  if (json.contains("generate")) {
    ASSIGN_OR_RETURN(const auto spec,
                     ParseTestHubModelSpec(Text(json, "generate")));
    ASSIGN_OR_RETURN(files, MakeTestHubModel(spec));
  } else {
    ASSIGN_OR_RETURN(files, ReadTestHubFolder(Text(json, "folder")));
  }
  return hub.Commit(Text(json, "repo"), branch, std::move(files));
}

Result<Json> Run(TestHub::State& hub, const std::string& op, const Json& json) {
  const Json done = Json::object();
  if (op == "settings") return Settings(hub, json);
  if (op == "log") return Log(hub, json);
  if (op == "add_fault") {
    if (auto added = AddFault(hub, json)) return std::move(*added);
    return MakeError(Code::kInvalid, "unknown fault: {}", Text(json, "kind"));
  }
  if (op == "commit") {
    ASSIGN_OR_RETURN(const std::string commit, Commit(hub, json));
    return Json{{"commit", commit}};
  }
  if (op == "set_ref") {
    if (hub.SetRef(Text(json, "repo"), Text(json, "ref"),
                   Text(json, "commit"))) {
      return done;
    }
    return MakeError(Code::kInvalid, "no such repo or commit");
  }
  if (op == "fault_kinds") return Json{{"kinds", TestHubFaultKindNames()}};
  if (op == "fault_hits") {
    return Json{{"hits", hub.FaultHits(Number(json, "id", 0))}};
  }
  if (op == "wait") {
    const bool came = hub.WaitFor(
        FilterOf(json), Number(json, "count", 1), Flag(json, "done", false),
        Milliseconds(json, "timeout_ms", milliseconds(10'000)));
    return Json{{"came", came}};
  }
  if (op == "remove_fault") {
    hub.RemoveFault(Number(json, "id", 0));
  } else if (op == "clear_faults") {
    hub.ClearFaults();
  } else if (op == "release_hangs") {
    hub.ReleaseHangs();
  } else if (op == "clear_log") {
    hub.ClearLog();
  } else if (op == "set_repo") {
    SetRepo(hub, json);
  } else if (op == "add_token") {
    hub.AddToken(Text(json, "token"));
  } else if (op == "add_alias") {
    hub.AddAlias(Text(json, "from"), Text(json, "repo"));
  } else if (op == "rotate_key") {
    hub.RotateSigningKey();
  } else if (op == "outage") {
    hub.Outage(Milliseconds(json, "ms", milliseconds(1000)));
  } else if (op != "ping") {
    return MakeError(Code::kInvalid, "unknown op: {}", op);
  }
  return done;
}

}  // namespace

std::string HubLogLine(const TestHubRequest& request) {
  return Dump(RequestJson(request));
}

HubReply AnswerHubControl(TestHub::State& hub, const std::string& body) {
  const Json json = Json::parse(body, nullptr, false);
  if (!json.is_object()) return HubJsonError(400, "", "not a JSON object");
  auto result = Run(hub, Text(json, "op"), json);
  if (!result) return HubJsonError(400, "", result.error().message());
  HubReply reply;
  SetHubBody(reply, Dump(*result), "application/json");
  return reply;
}

}  // namespace weightfs
