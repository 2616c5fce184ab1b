#include "formats/pt.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string_view>

#include "formats/base/checked.h"
#include "formats/text.h"
#include "formats/torch_types.h"
#include "formats/writer.h"
#include "formats/zip_writer.h"

namespace weightfs {
namespace {

// Appends the opcodes of pickle protocol 2 that torch's weights_only reader
// takes.
class Pickler {
 public:
  Pickler() : bytes_("\x80\x02") {}

  void Op(char opcode) { bytes_ += opcode; }
  void Global(std::string_view module, std::string_view name) {
    bytes_ += fmt::format("c{}\n{}\n", module, name);
  }
  void String(std::string_view text) {
    Op('X');
    Number(text.size(), 4);
    bytes_ += text;
  }
  // REQUIRES: value < 2^63.
  void Int(uint64_t value) {
    if (value <= 0xff) {
      Op('K');
      Number(value, 1);
    } else if (value <= 0xffff) {
      Op('M');
      Number(value, 2);
    } else if (value <= 0x7fffffff) {
      Op('J');
      Number(value, 4);
    } else {
      // LONG1: as few bytes as hold it with its sign bit clear.
      int length = 1;
      while (value >> (8 * length - 1) != 0) ++length;
      Op('\x8a');
      Number(static_cast<uint64_t>(length), 1);
      Number(value, length);
    }
  }
  void Tuple(const std::vector<uint64_t>& values) {
    if (values.empty()) return Op(')');
    if (values.size() > 3) Op('(');
    for (const uint64_t value : values) Int(value);
    if (values.size() > 3) return Op('t');
    Op(static_cast<char>(0x84 + values.size()));  // TUPLE1, TUPLE2, TUPLE3
  }
  std::string Take() && { return std::move(bytes_); }

 private:
  void Number(uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) {
      bytes_ += static_cast<char>((value >> (8 * i)) & 0xff);
    }
  }

  std::string bytes_;
};

constexpr uint64_t kMaxInt64 = std::numeric_limits<int64_t>::max();

// The shape in torch's elements.
Result<std::vector<uint64_t>> TorchShape(const TensorInfo& tensor) {
  std::vector<uint64_t> shape = tensor.shape;
  if (tensor.dtype == DType::kF4) {
    if (shape.empty() || shape.back() % 2 != 0) {
      return MakeError(Code::kUnsupported,
                       "torch holds F4 in pairs along the last dimension, "
                       "which is odd here");
    }
    shape.back() /= 2;
  }
  for (const uint64_t dim : shape) {
    if (dim > kMaxInt64) {
      return MakeError(Code::kUnsupported, "torch holds no dimension of {}",
                       dim);
    }
  }
  return shape;
}

// Row-major, as torch has them: a dimension of 0 counts as 1.
Result<std::vector<uint64_t>> TorchStrides(const std::vector<uint64_t>& shape) {
  std::vector<uint64_t> strides(shape.size());
  uint64_t step = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = step;
    const auto next = CheckedMul(step, std::max<uint64_t>(shape[i], 1));
    if (!next || *next > kMaxInt64) {
      return MakeError(Code::kUnsupported, "torch holds no stride of 2^63");
    }
    step = *next;
  }
  return strides;
}

}  // namespace

bool PtHolds(DType dtype) {
  const TorchType type = TorchTypeOf(dtype);
  return !type.storage.empty() || !type.dtype.empty();
}

Result<std::string> PtPickle(const TensorInfo& tensor) {
  RETURN_IF_ERROR(CheckFormatHolds(Format::kPt, tensor.dtype));
  const TorchType type = TorchTypeOf(tensor.dtype);
  const bool classic = !type.storage.empty();
  ASSIGN_OR_RETURN(const auto shape, TorchShape(tensor));
  ASSIGN_OR_RETURN(const auto strides, TorchStrides(shape));
  ASSIGN_OR_RETURN(const uint64_t size, DenseSize(tensor.dtype, tensor.shape));

  Pickler pickle;
  pickle.Global("torch._utils",
                classic ? "_rebuild_tensor_v2" : "_rebuild_tensor_v3");
  pickle.Op('(');
  // The storage: ('storage', class, key, location, elements).
  pickle.Op('(');
  pickle.String("storage");
  if (classic) {
    pickle.Global("torch", type.storage);
  } else {
    pickle.Global("torch.storage", "UntypedStorage");
  }
  pickle.String("0");
  pickle.String("cpu");
  pickle.Int(classic ? size / (DTypeBits(tensor.dtype) / 8) : size);
  pickle.Op('t');
  pickle.Op('Q');  // BINPERSID
  pickle.Int(0);   // storage offset
  pickle.Tuple(shape);
  pickle.Tuple(strides);
  pickle.Op('\x89');                            // requires_grad: NEWFALSE
  pickle.Global("collections", "OrderedDict");  // no backward hooks
  pickle.Op(')');
  pickle.Op('R');
  if (!classic) pickle.Global("torch", type.dtype);
  pickle.Op('t');
  pickle.Op('R');
  pickle.Op('.');
  return std::move(pickle).Take();
}

Result<std::vector<Segment>> WritePt(const TensorInfo& tensor) {
  ASSIGN_OR_RETURN(const std::string pickle, PtPickle(tensor));
  ASSIGN_OR_RETURN(const auto data, DenseSegments(tensor));
  ZipWriter zip;
  zip.AddLiteral("archive/data.pkl", pickle);
  zip.AddLiteral("archive/byteorder", "little");
  zip.AddSegments("archive/data/0", data);
  zip.AddLiteral("archive/version", "3\n");
  return zip.Finish();
}

}  // namespace weightfs
