"""stubs.py HEADERS: classes in which every function of TensorRT's interfaces ends the test that comes to it, whatever the version."""

import re
import sys
from pathlib import Path

folder = Path(sys.argv[1])
text = "".join((folder / name).read_text() for name in ("NvInferImpl.h", "NvInferRuntimeCommon.h"))
text = re.sub(r"//[^\n]*", "", text)
print('#pragma once\n#pragma GCC diagnostic ignored "-Wdeprecated-declarations"')
print("#include <NvInfer.h>\nnamespace fake {\nusing namespace nvinfer1;\n[[noreturn]] void unexpected(const char* name);")
for interface, scope in (("VRuntime", "apiv::"), ("VCudaEngine", "apiv::"), ("VExecutionContext", "apiv::"), ("IPluginRegistry", "")):
    body = re.search(rf"class {interface}(?: : public VRoot)?\n{{(.*?)\n}};", text, re.DOTALL).group(1)
    print(f"class {interface[1:]}Stubs : public nvinfer1::{scope}{interface} {{\n public:")
    for function in re.findall(r"\bvirtual ([^;~]*?) = 0;", body):
        signature = re.sub(r"\s+", " ", function)
        name = re.search(r"(\w+)\(", signature).group(1)
        print(f'  {signature} {{ unexpected("{interface}::{name}"); }}')
    print("};")
print("}  // namespace fake")
