#include "formats/torch_rebuild.h"

#include <array>
#include <optional>
#include <string_view>
#include <utility>

#include "formats/base/checked.h"
#include "formats/tensor_index.h"
#include "formats/text.h"
#include "formats/torch_types.h"

namespace weightfs {
namespace {

using Kind = Pickle::Kind;
using Ref = Pickle::Ref;

struct FunctionRow {
  std::string_view module;
  std::string_view name;
  TorchFunction function;
};

constexpr std::array kFunctions = std::to_array<FunctionRow>({
    {"torch._utils", "_rebuild_tensor", TorchFunction::kTensor},
    {"torch._utils", "_rebuild_tensor_v2", TorchFunction::kTensor},
    {"torch._utils", "_rebuild_tensor_v3", TorchFunction::kTensorV3},
    {"torch._utils", "_rebuild_qtensor", TorchFunction::kQuantised},
    {"torch._utils", "_rebuild_parameter", TorchFunction::kFirst},
    {"torch._utils", "_rebuild_parameter_with_state", TorchFunction::kFirst},
    {"torch._utils", "_rebuild_sparse_tensor", TorchFunction::kSparse},
    {"torch._utils", "_rebuild_sparse_csr_tensor", TorchFunction::kRefused},
    {"torch._utils", "_rebuild_nested_tensor", TorchFunction::kRefused},
    {"torch._utils", "_rebuild_meta_tensor_no_storage",
     TorchFunction::kRefused},
    {"torch._utils", "_rebuild_wrapper_subclass", TorchFunction::kRefused},
    {"torch._utils", "_rebuild_device_tensor_from_numpy",
     TorchFunction::kRefused},
    {"torch._utils", "_rebuild_device_tensor_from_cpu_tensor",
     TorchFunction::kRefused},
    {"torch._tensor", "_rebuild_from_type", TorchFunction::kFromType},
    {"torch._tensor", "_rebuild_from_type_v2", TorchFunction::kFromType},
    {"torch.tensor", "_rebuild_from_type", TorchFunction::kFromType},
    {"torch.jit._pickle", "restore_type_tag", TorchFunction::kFirst},
    {"torch.jit._pickle", "build_intlist", TorchFunction::kFirst},
    {"torch.jit._pickle", "build_tensorlist", TorchFunction::kFirst},
    {"torch.jit._pickle", "build_doublelist", TorchFunction::kFirst},
    {"torch.jit._pickle", "build_boollist", TorchFunction::kFirst},
    {"torch", "Size", TorchFunction::kFirst},
});

Error Bad(std::string_view what) {
  return MakeError(Code::kCorrupt, "{}", what);
}

Result<uint64_t> ReadCount(const Pickle& pickle, Ref ref,
                           std::string_view what) {
  if (pickle.kind(ref) == Kind::kInt && pickle.Int(ref) >= 0) {
    return static_cast<uint64_t>(pickle.Int(ref));
  }
  return MakeError(Code::kCorrupt, "its {} is no integer in [0, 2^63)", what);
}

Result<std::vector<uint64_t>> ReadCounts(const Pickle& pickle, Ref ref,
                                         std::string_view what) {
  // torch.Size((2, 3)), build_intlist([2, 3]).
  while (pickle.kind(ref) == Kind::kCall &&
         TorchFunctionOf(pickle, pickle.Callable(ref)) ==
             TorchFunction::kFirst) {
    const auto args = pickle.Items(pickle.Args(ref));
    // A tuple holds older nodes than itself: this ends.
    if (args.empty() || args[0] >= ref) break;
    ref = args[0];
  }
  if (pickle.kind(ref) != Kind::kTuple && pickle.kind(ref) != Kind::kList) {
    return MakeError(Code::kCorrupt, "its {} is no tuple", what);
  }
  const auto items = pickle.Items(ref);
  if (items.size() > kMaxTorchRank) {
    return MakeError(Code::kUnsupported, "it has {} dimensions, over {}",
                     items.size(), kMaxTorchRank);
  }
  std::vector<uint64_t> counts;
  counts.reserve(items.size());
  for (const Ref item : items) {
    ASSIGN_OR_RETURN(counts.emplace_back(), ReadCount(pickle, item, what));
  }
  return counts;
}

// A view of a storage, as torch had them before 0.4: (key, offset, elements).
Result<> ReadView(const Pickle& pickle, Ref view, TorchStorageId& storage) {
  if (pickle.kind(view) == Kind::kNone) return {};
  const auto items = pickle.Items(view);
  if (pickle.kind(view) != Kind::kTuple || items.size() != 3) {
    return Bad("the view of its storage is no tuple of three");
  }
  ASSIGN_OR_RETURN(const uint64_t first,
                   ReadCount(pickle, items[1], "view's offset"));
  ASSIGN_OR_RETURN(const uint64_t count,
                   ReadCount(pickle, items[2], "view's size"));
  const auto offset = CheckedMul(first, storage.item);
  const auto size = CheckedMul(count, storage.item);
  if (!offset || !size || !RangeFits(*offset, *size, storage.size)) {
    return Bad("the view of its storage reaches past it");
  }
  storage.view_offset = *offset;
  storage.view_size = *size;
  return {};
}

Result<TorchStorageId> ReadStorage(const Pickle& pickle, Ref ref) {
  if (pickle.kind(ref) != Kind::kPersistent) return Bad("it has no storage");
  const auto id = pickle.Items(pickle.PersistentId(ref));
  if (pickle.kind(pickle.PersistentId(ref)) != Kind::kTuple || id.size() < 5 ||
      !pickle.IsText(id[0], "storage") || pickle.kind(id[1]) != Kind::kGlobal) {
    return Bad("the id of its storage is not torch's");
  }
  TorchStorageId storage;
  const std::string_view type = pickle.Name(id[1]);
  if (type != "UntypedStorage" && type != "_UntypedStorage") {
    const auto dtype = DTypeOfTorchStorage(type);
    if (!dtype) {
      return MakeError(Code::kUnsupported, "storage type {} is not known",
                       QuoteName(type));
    }
    storage.dtype = *dtype;
    storage.typed = true;
    storage.item = DTypeBits(*dtype) / 8;
  }
  if (pickle.kind(id[2]) == Kind::kString) {
    storage.key = pickle.Text(id[2]);
  } else {
    ASSIGN_OR_RETURN(const uint64_t key,
                     ReadCount(pickle, id[2], "storage's key"));
    storage.key = fmt::format("{}", key);
  }
  ASSIGN_OR_RETURN(const uint64_t count,
                   ReadCount(pickle, id[4], "storage's size"));
  const auto size = CheckedMul(count, storage.item);
  if (!size) return Bad("the size of its storage overflows 64 bits");
  storage.size = *size;
  storage.view_size = *size;
  if (id.size() > 5) RETURN_IF_ERROR(ReadView(pickle, id[5], storage));
  return storage;
}

// torch's lazy conjugation and negation: the bytes are not the tensor's.
Result<> CheckResolved(const Pickle& pickle, Ref metadata) {
  if (pickle.kind(metadata) != Kind::kDict) return {};
  const auto items = pickle.Items(metadata);
  for (size_t i = 0; i + 1 < items.size(); i += 2) {
    const bool conj = pickle.IsText(items[i], "conj");
    if (!conj && !pickle.IsText(items[i], "neg")) continue;
    if (pickle.kind(items[i + 1]) == Kind::kBool &&
        pickle.Int(items[i + 1]) == 0) {
      continue;
    }
    return MakeError(Code::kUnsupported,
                     "its bytes are stored without their {}",
                     conj ? "conjugation" : "negation");
  }
  return {};
}

Result<DType> ReadDType(const Pickle& pickle, Ref ref) {
  if (pickle.kind(ref) != Kind::kGlobal || pickle.Module(ref) != "torch") {
    return Bad("its dtype is none of torch's");
  }
  const auto dtype = DTypeOfTorchName(pickle.Name(ref));
  if (dtype) return *dtype;
  return MakeError(Code::kUnsupported, "dtype {} is not known",
                   QuoteName(pickle.Name(ref)));
}

// True if the strides are those of a dense tensor; dimensions of 1 may have
// any.
bool AreDense(const std::vector<uint64_t>& shape,
              const std::vector<uint64_t>& strides) {
  uint64_t expected = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    if (shape[i] == 1) continue;
    if (strides[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

// Checks that elements of `item` bytes lie in the view, and drops the strides
// of a dense tensor.
Result<> FitInStorage(RebuiltTensor& tensor, uint64_t item) {
  if (tensor.shape.size() != tensor.strides.size()) {
    return MakeError(Code::kCorrupt, "it has {} dimensions and {} strides",
                     tensor.shape.size(), tensor.strides.size());
  }
  const auto count = ElementCount(tensor.shape);
  if (!count) return Bad("its shape overflows 64 bits");
  if (*count == 0) {
    tensor.strides.clear();
    tensor.offset = 0;
    return {};
  }
  std::optional<uint64_t> last = tensor.offset;
  for (size_t i = 0; i < tensor.shape.size() && last; ++i) {
    const auto reach = CheckedMul(tensor.shape[i] - 1, tensor.strides[i]);
    last = reach ? CheckedAdd(*last, *reach) : std::nullopt;
  }
  const auto elements = last ? CheckedAdd(*last, 1) : std::nullopt;
  const auto bytes = elements ? CheckedMul(*elements, item) : std::nullopt;
  if (!bytes || *bytes > tensor.storage.view_size) {
    return MakeError(Code::kCorrupt, "it reaches past its storage of {} bytes",
                     tensor.storage.view_size);
  }
  if (AreDense(tensor.shape, tensor.strides)) tensor.strides.clear();
  return {};
}

// torch counts pairs of F4; weightfs counts each.
Result<> SplitPairs(RebuiltTensor& tensor) {
  if (!tensor.strides.empty()) {
    return MakeError(Code::kUnsupported, "it is a strided F4");
  }
  if (tensor.shape.empty()) tensor.shape.push_back(1);
  const auto last = CheckedMul(tensor.shape.back(), 2);
  if (!last) return Bad("its shape overflows 64 bits");
  tensor.shape.back() = *last;
  tensor.offset *= 2;  // it lies in a storage of fewer bytes than 2^63
  return {};
}

}  // namespace

TorchFunction TorchFunctionOf(const Pickle& pickle, Ref callable) {
  if (pickle.kind(callable) != Kind::kGlobal) return TorchFunction::kOther;
  const std::string_view module = pickle.Module(callable);
  const std::string_view name = pickle.Name(callable);
  if (!module.starts_with("torch")) return TorchFunction::kOther;
  for (const FunctionRow& row : kFunctions) {
    if (row.name == name && row.module == module) return row.function;
  }
  return TorchFunction::kOther;
}

Result<RebuiltTensor> RebuildTensor(const Pickle& pickle,
                                    TorchFunction function,
                                    std::span<const Ref> args) {
  const size_t needed = function == TorchFunction::kTensorV3 ? 7 : 4;
  if (args.size() < needed) {
    return MakeError(Code::kCorrupt, "it has {} of {} arguments", args.size(),
                     needed);
  }
  RebuiltTensor tensor;
  ASSIGN_OR_RETURN(tensor.storage, ReadStorage(pickle, args[0]));
  ASSIGN_OR_RETURN(tensor.offset, ReadCount(pickle, args[1], "offset"));
  ASSIGN_OR_RETURN(tensor.shape, ReadCounts(pickle, args[2], "size"));
  ASSIGN_OR_RETURN(tensor.strides, ReadCounts(pickle, args[3], "stride"));
  tensor.dtype = tensor.storage.dtype;
  if (function == TorchFunction::kTensorV3) {
    ASSIGN_OR_RETURN(tensor.dtype, ReadDType(pickle, args[6]));
  } else if (!tensor.storage.typed) {
    return Bad("neither it nor its storage has a dtype");
  }
  const size_t metadata = function == TorchFunction::kTensorV3 ? 7 : 6;
  if (function != TorchFunction::kQuantised && args.size() > metadata) {
    RETURN_IF_ERROR(CheckResolved(pickle, args[metadata]));
  }
  const bool pairs = tensor.dtype == DType::kF4;
  const uint64_t item = pairs ? 1 : DTypeBits(tensor.dtype) / 8;
  RETURN_IF_ERROR(FitInStorage(tensor, item));
  if (pairs) RETURN_IF_ERROR(SplitPairs(tensor));
  return tensor;
}

}  // namespace weightfs
