"""stubs.py NvInferImpl.h: classes in which every function of TensorRT's implementation interfaces ends the test that comes to it, whatever the version."""

import re
import sys
from pathlib import Path

text = Path(sys.argv[1]).read_text()
print("#pragma once\n#include <NvInfer.h>\nnamespace fake {\nusing namespace nvinfer1;\n[[noreturn]] void unexpected(const char* name);")
for interface in ("VRuntime", "VCudaEngine", "VExecutionContext"):
    body = re.search(rf"class {interface} : public VRoot\n{{(.*?)\n}};", text, re.DOTALL).group(1)
    print(f"class {interface[1:]}Stubs : public nvinfer1::apiv::{interface} {{\n public:")
    for function in re.findall(r"\bvirtual (.*?) = 0;", body, re.DOTALL):
        signature = re.sub(r"\s+", " ", function)
        name = re.search(r"(\w+)\(", signature).group(1)
        print(f'  {signature} {{ unexpected("{interface}::{name}"); }}')
    print("};")
print("}  // namespace fake")
