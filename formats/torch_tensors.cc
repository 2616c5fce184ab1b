#include "formats/torch_tensors.h"

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "formats/base/checked.h"
#include "formats/text.h"
#include "formats/torch_rebuild.h"

namespace weightfs {
namespace {

constexpr std::string_view kRootName = "tensor";  // of a file that is one

bool IsScalar(Pickle::Kind kind) {
  return kind == Pickle::Kind::kBool || kind == Pickle::Kind::kInt ||
         kind == Pickle::Kind::kFloat || kind == Pickle::Kind::kString;
}

// As Python prints it.
std::string ScalarText(const Pickle& pickle, Pickle::Ref ref) {
  switch (pickle.kind(ref)) {
    case Pickle::Kind::kBool:
      return pickle.Int(ref) != 0 ? "True" : "False";
    case Pickle::Kind::kInt:
      return fmt::format("{}", pickle.Int(ref));
    case Pickle::Kind::kFloat:
      return fmt::format("{}", pickle.Float(ref));
    case Pickle::Kind::kString:
      return std::string(pickle.Text(ref));
    case Pickle::Kind::kNone:
      return "None";
    default:
      return {};
  }
}

// nn.Module keeps what is its own in these; a name does not show them.
bool IsModuleTable(std::string_view attribute) {
  return attribute == "_parameters" || attribute == "_buffers" ||
         attribute == "_modules";
}

// Bytes from the storage's start to the tensor's.
std::optional<uint64_t> FirstByte(const TorchTensor& tensor) {
  const uint64_t bits = DTypeBits(tensor.dtype);
  const auto offset = bits % 8 == 0 ? CheckedMul(tensor.offset, bits / 8)
                                    : CheckedMul(tensor.offset, bits);
  if (!offset) return std::nullopt;
  return CheckedAdd(tensor.view_offset, bits % 8 == 0 ? *offset : *offset / 8);
}

}  // namespace

// Walks one pickle's graph, from the root down.
class TorchCollector::Walker {
 public:
  Walker(TorchCollector& collector, const Pickle& pickle,
         std::string_view folder)
      : collector_(collector),
        pickle_(pickle),
        folder_(folder),
        on_path_(pickle.node_count()) {}

  void Run(std::string_view prefix) {
    path_ = prefix;
    Visit(pickle_.root(), 0, Scalars::kKeep);
  }

 private:
  using Kind = Pickle::Kind;
  using Ref = Pickle::Ref;
  // Whether numbers and texts become metadata. Those in an object's state are
  // the class's business.
  enum class Scalars { kKeep, kDrop };
  // What the keys of a table are.
  enum class Keys { kItems, kAttributes };

  void AddProblem(const Error& error) {
    collector_.contents_.AddProblem(
        path_.empty() ? kRootName : std::string_view(path_), error);
  }

  // One component longer, while `visit` runs.
  template <class Fn>
  void Within(std::string_view component, Fn&& visit) {
    const size_t length = path_.size();
    if (length > 0) path_ += '.';
    path_ += component;
    if (path_.size() > kMaxTorchName) {
      AddProblem(MakeError(Code::kUnsupported, "a name of over {} bytes",
                           kMaxTorchName));
    } else {
      visit();
    }
    path_.resize(length);
  }

  // False if the walk has gone on for long enough.
  bool Spend(size_t steps) {
    if (stopped_) return false;
    visits_ += steps;
    if (visits_ <= kMaxTorchVisits) return true;
    stopped_ = true;
    AddProblem(MakeError(Code::kUnsupported,
                         "over {} values: the rest is not listed",
                         kMaxTorchVisits));
    return false;
  }

  void Visit(Ref ref, size_t depth, Scalars scalars) {
    if (!Spend(1)) return;
    const Kind kind = pickle_.kind(ref);
    const bool container = kind == Kind::kTuple || kind == Kind::kList ||
                           kind == Kind::kDict || kind == Kind::kCall ||
                           kind == Kind::kObject;
    // What is on the path already is a way back up.
    if (!container || on_path_[ref]) return;
    if (depth >= kMaxTorchDepth) {
      AddProblem(MakeError(Code::kUnsupported, "lies over {} levels deep",
                           kMaxTorchDepth));
      return;
    }
    on_path_[ref] = true;
    if (kind == Kind::kDict) {
      VisitPairs(pickle_.Items(ref), depth, scalars, Keys::kItems);
    } else if (kind == Kind::kTuple || kind == Kind::kList) {
      VisitList(pickle_.Items(ref), depth, scalars);
    } else {
      VisitMade(ref, depth, scalars);
    }
    on_path_[ref] = false;
  }

  void VisitList(std::span<const Ref> items, size_t depth, Scalars scalars) {
    if (!Spend(items.size())) return;
    for (size_t i = 0; i < items.size() && !stopped_; ++i) {
      // Most lists are of numbers; they cost no name.
      if (IsScalar(pickle_.kind(items[i]))) continue;
      Within(fmt::format("{}", i),
             [&] { Visit(items[i], depth + 1, scalars); });
    }
  }

  // key, value, key, value, …
  void VisitPairs(std::span<const Ref> pairs, size_t depth, Scalars scalars,
                  Keys keys) {
    std::vector<std::string> names(pairs.size() / 2);
    std::unordered_map<std::string_view, size_t> last;
    for (size_t i = 0; i < names.size(); ++i) {
      const Ref key = pairs[2 * i];
      const bool text = pickle_.kind(key) == Kind::kString;
      if (!Spend(1 + (text ? pickle_.Text(key).size() / 64 : 0))) return;
      names[i] = KeyText(key, i);
      last[names[i]] = i;
    }
    for (size_t i = 0; i < names.size() && !stopped_; ++i) {
      const Ref value = pairs[2 * i + 1];
      if (last[names[i]] != i) {
        if (pickle_.kind(pairs[2 * i]) ==
            pickle_.kind(pairs[2 * last[names[i]]])) {
          continue;  // Python keeps the last
        }
        Within(names[i], [&] {
          AddProblem(MakeError(Code::kUnsupported,
                               "two keys of a dict have this name"));
        });
        continue;
      }
      if (keys == Keys::kAttributes && IsModuleTable(names[i])) {
        Visit(value, depth + 1, scalars);
        continue;
      }
      Within(names[i], [&] {
        if (!IsScalar(pickle_.kind(value))) {
          Visit(value, depth + 1, scalars);
        } else if (scalars == Scalars::kKeep) {
          AddMetadata(value);
        }
      });
    }
  }

  std::string KeyText(Ref key, size_t position) const {
    const Kind kind = pickle_.kind(key);
    if (IsScalar(kind) || kind == Kind::kNone) return ScalarText(pickle_, key);
    return fmt::format("key{}", position);
  }

  void AddMetadata(Ref value) {
    auto& metadata = collector_.contents_.metadata;
    if (metadata.size() >= kMaxTorchMetadata) return;
    if (pickle_.kind(value) == Kind::kString &&
        pickle_.Text(value).size() > kMaxTorchMetadataValue) {
      return;
    }
    std::string text = ScalarText(pickle_, value);
    if (!IsUtf8(text) || !IsUtf8(path_)) return;
    metadata.try_emplace(path_, std::move(text));
  }

  // The result of a call.
  void VisitMade(Ref ref, size_t depth, Scalars scalars) {
    const Ref callable = pickle_.Callable(ref);
    if (pickle_.kind(ref) == Kind::kCall) {
      const auto function = TorchFunctionOf(pickle_, callable);
      if (function != TorchFunction::kOther) {
        VisitTorchCall(function, pickle_.Items(pickle_.Args(ref)), depth,
                       scalars);
        return;
      }
    }
    const bool ordered =
        pickle_.IsGlobal(callable, "collections", "OrderedDict");
    if (ordered) {
      VisitPairList(pickle_.Args(ref), depth, scalars);
    } else if (pickle_.kind(ref) == Kind::kObject) {
      // namedtuple's fields.
      VisitList(pickle_.Items(pickle_.Args(ref)), depth, scalars);
    }
    VisitPairs(pickle_.Items(ref), depth, scalars, Keys::kItems);
    VisitList(pickle_.Appended(ref), depth, scalars);
    // A state dict has versions of its modules there.
    if (!ordered && pickle_.State(ref) != Pickle::kNoRef) {
      VisitState(pickle_.State(ref), depth);
    }
  }

  // OrderedDict([[key, value], …]), as Python 2 wrote them.
  void VisitPairList(Ref args, size_t depth, Scalars scalars) {
    const auto outer = pickle_.Items(args);
    if (outer.empty() || pickle_.kind(outer[0]) != Kind::kList) return;
    std::vector<Ref> pairs;
    for (const Ref pair : pickle_.Items(outer[0])) {
      const auto items = pickle_.Items(pair);
      if (items.size() == 2) pairs.insert(pairs.end(), {items[0], items[1]});
    }
    VisitPairs(pairs, depth, scalars, Keys::kItems);
  }

  // An object's __dict__, or (__dict__, slots), or what its class makes of it.
  void VisitState(Ref state, size_t depth) {
    const auto is_table = [&](Ref ref) {
      return pickle_.kind(ref) == Kind::kDict ||
             pickle_.kind(ref) == Kind::kNone;
    };
    const auto visit_table = [&](Ref ref) {
      if (pickle_.kind(ref) != Kind::kDict || on_path_[ref]) return;
      on_path_[ref] = true;
      VisitPairs(pickle_.Items(ref), depth + 1, Scalars::kDrop,
                 Keys::kAttributes);
      on_path_[ref] = false;
    };
    const auto items = pickle_.Items(state);
    if (pickle_.kind(state) == Kind::kDict) {
      visit_table(state);
    } else if (pickle_.kind(state) == Kind::kTuple && items.size() == 2 &&
               is_table(items[0]) && is_table(items[1])) {
      visit_table(items[0]);
      visit_table(items[1]);
    } else {
      Visit(state, depth + 1, Scalars::kDrop);
    }
  }

  void VisitTorchCall(TorchFunction function, std::span<const Ref> args,
                      size_t depth, Scalars scalars) {
    switch (function) {
      case TorchFunction::kTensor:
      case TorchFunction::kTensorV3:
      case TorchFunction::kQuantised:
        AddTensor(function, args);
        if (function == TorchFunction::kQuantised && args.size() > 4) {
          VisitQuantiser(pickle_.Items(args[4]), depth);
        }
        return;
      case TorchFunction::kFirst:
        if (!args.empty()) Visit(args[0], depth + 1, scalars);
        return;
      case TorchFunction::kFromType:
        VisitFromType(args, depth, scalars);
        return;
      case TorchFunction::kSparse:
        VisitSparse(args, depth);
        return;
      case TorchFunction::kRefused:
      case TorchFunction::kOther:
        AddProblem(MakeError(Code::kUnsupported,
                             "its bytes lie in no storage of the file"));
        return;
    }
  }

  // (function, type, arguments, state)
  void VisitFromType(std::span<const Ref> args, size_t depth, Scalars scalars) {
    const auto function = args.size() < 3 ? TorchFunction::kOther
                                          : TorchFunctionOf(pickle_, args[0]);
    if (function == TorchFunction::kOther ||
        function == TorchFunction::kFromType) {
      AddProblem(MakeError(Code::kUnsupported,
                           "is made by a function that is not known"));
      return;
    }
    VisitTorchCall(function, pickle_.Items(args[2]), depth, scalars);
  }

  // (scheme, scale, zero point) or (scheme, scales, zero points, axis).
  void VisitQuantiser(std::span<const Ref> items, size_t depth) {
    if (items.size() < 3 || pickle_.kind(items[0]) != Kind::kGlobal) return;
    Within("quantizer", [&] {
      auto& metadata = collector_.contents_.metadata;
      if (metadata.size() < kMaxTorchMetadata && IsUtf8(path_) &&
          IsUtf8(pickle_.Name(items[0]))) {
        std::string text(pickle_.Name(items[0]));
        for (const Ref item : items.subspan(1)) {
          if (IsScalar(pickle_.kind(item))) {
            text += " " + ScalarText(pickle_, item);
          }
        }
        if (text.size() <= kMaxTorchMetadataValue && IsUtf8(text)) {
          metadata.try_emplace(path_, std::move(text));
        }
      }
    });
    Within("scales", [&] { Visit(items[1], depth + 1, Scalars::kDrop); });
    Within("zero_points", [&] { Visit(items[2], depth + 1, Scalars::kDrop); });
  }

  // (layout, (indices, values, size, …)): two tensors of their own.
  void VisitSparse(std::span<const Ref> args, size_t depth) {
    const auto data =
        args.size() < 2 ? std::span<const Ref>() : pickle_.Items(args[1]);
    bool coordinates = false;
    if (data.size() >= 3 && pickle_.kind(args[0]) == Kind::kCall) {
      const auto layout = pickle_.Items(pickle_.Args(args[0]));
      coordinates =
          !layout.empty() && pickle_.IsText(layout[0], "torch.sparse_coo");
    }
    if (!coordinates) {
      AddProblem(MakeError(Code::kUnsupported,
                           "is sparse, of a layout that is not read"));
      return;
    }
    Within("indices", [&] { Visit(data[0], depth + 1, Scalars::kDrop); });
    Within("values", [&] { Visit(data[1], depth + 1, Scalars::kDrop); });
  }

  void AddTensor(TorchFunction function, std::span<const Ref> args) {
    auto rebuilt = RebuildTensor(pickle_, function, args);
    if (!rebuilt.has_value()) {
      AddProblem(rebuilt.error());
      return;
    }
    auto& contents = collector_.contents_;
    std::string name = path_.empty() ? std::string(kRootName) : path_;
    collector_.dims_ += rebuilt->shape.size();
    collector_.name_bytes_ += name.size();
    if (contents.tensors.size() >= kMaxTorchTensors ||
        collector_.dims_ > kMaxTorchDims ||
        collector_.name_bytes_ > kMaxTorchNames) {
      stopped_ = true;
      AddProblem(MakeError(Code::kUnsupported,
                           "too many tensors: the rest is not listed"));
      return;
    }
    if (!collector_.tensor_of_.try_emplace(name, contents.tensors.size())
             .second) {
      AddProblem(MakeError(Code::kUnsupported, "another tensor has this name"));
      return;
    }
    TorchTensor tensor;
    tensor.name = std::move(name);
    tensor.dtype = rebuilt->dtype;
    tensor.shape = std::move(rebuilt->shape);
    tensor.strides = std::move(rebuilt->strides);
    tensor.offset = rebuilt->offset;
    tensor.view_offset = rebuilt->storage.view_offset;
    tensor.view_size = rebuilt->storage.view_size;
    tensor.storage = AddStorage(rebuilt->storage);
    contents.tensors.push_back(std::move(tensor));
  }

  size_t AddStorage(const TorchStorageId& id) {
    auto& storages = collector_.contents_.storages;
    std::string key = std::string(folder_) + id.key;
    const auto [known, fresh] =
        collector_.storage_of_.try_emplace(key, storages.size());
    if (fresh) {
      storages.push_back({std::move(key), id.size, id.item, true});
    } else {
      TorchStorage& storage = storages[known->second];
      if (storage.size != id.size || storage.item != id.item) {
        storage.agreed = false;
      }
      storage.size = std::max(storage.size, id.size);
    }
    return known->second;
  }

  TorchCollector& collector_;
  const Pickle& pickle_;
  const std::string_view folder_;
  std::vector<bool> on_path_;  // by Ref
  std::string path_;
  size_t visits_ = 0;
  bool stopped_ = false;
};

void TorchContents::AddProblem(std::string_view name, const Error& error) {
  if (problems.size() > kMaxTorchProblems) return;
  if (problems.size() == kMaxTorchProblems) {
    problems.emplace_back("and more");
    return;
  }
  problems.push_back(fmt::format("{}: {}", QuoteName(name), error.ToString()));
}

void TorchCollector::Add(const Pickle& pickle, std::string_view prefix,
                         std::string_view folder) {
  Walker(*this, pickle, folder).Run(prefix);
}

Result<TensorInfo> PlaceTorchTensor(const TorchTensor& tensor, uint64_t offset,
                                    uint64_t size) {
  TensorInfo info;
  info.name = tensor.name;
  info.dtype = tensor.dtype;
  info.shape = tensor.shape;
  info.storage_id = tensor.storage;
  ASSIGN_OR_RETURN(const uint64_t dense, DenseSize(info.dtype, info.shape));
  if (dense == 0) return info;
  if (!tensor.strides.empty()) {
    if (!RangeFits(tensor.view_offset, tensor.view_size, size)) {
      return MakeError(Code::kCorrupt,
                       "its storage is {} bytes long, it needs {} from {} on",
                       size, tensor.view_size, tensor.view_offset);
    }
    info.strides = tensor.strides;
    info.storage_offset = tensor.offset;
    info.data = {{0, offset + tensor.view_offset, tensor.view_size}};
    return info;
  }
  const auto first = FirstByte(tensor);
  if (!first || !RangeFits(*first, dense, size)) {
    return MakeError(Code::kCorrupt,
                     "its storage is {} bytes long, too short for it", size);
  }
  info.data = {{0, offset + *first, dense}};
  return info;
}

Result<TensorIndex> TorchIndex(std::string object,
                               std::vector<TensorInfo> tensors,
                               TorchContents contents) {
  // Where its first byte lies; strided tensors begin in their storage.
  const auto place = [](const TensorInfo& tensor) {
    if (tensor.data.empty()) return uint64_t{0};
    return tensor.data[0].offset +
           tensor.storage_offset * (DTypeBits(tensor.dtype) / 8);
  };
  std::sort(tensors.begin(), tensors.end(),
            [&](const TensorInfo& a, const TensorInfo& b) {
              const uint64_t x = place(a);
              const uint64_t y = place(b);
              return std::tie(x, a.name) < std::tie(y, b.name);
            });
  for (size_t i = 0; i < tensors.size(); ++i) tensors[i].order = i;
  return TensorIndex::Create({std::move(object)}, std::move(tensors),
                             std::move(contents.metadata),
                             std::move(contents.problems));
}

}  // namespace weightfs
