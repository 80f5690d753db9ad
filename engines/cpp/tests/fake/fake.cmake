# One library under the names of three, and the tests of what TensorRT's session asks of them.
find_package(Python3 REQUIRED COMPONENTS Interpreter)
set(stubs ${CMAKE_CURRENT_BINARY_DIR}/fake)
file(STRINGS ${TENSORRT_HEADERS}/NvInferVersion.h major REGEX "define (NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE) +[0-9]+")
string(REGEX MATCH " ([0-9]+)" major "${major}")
set(major ${CMAKE_MATCH_1})
add_custom_command(OUTPUT ${stubs}/stubs.hpp COMMAND ${CMAKE_COMMAND} -E make_directory ${stubs}
  COMMAND Python3::Interpreter ${CMAKE_CURRENT_LIST_DIR}/stubs.py ${TENSORRT_HEADERS} > ${stubs}/stubs.hpp
  DEPENDS ${CMAKE_CURRENT_LIST_DIR}/stubs.py ${TENSORRT_HEADERS}/NvInferImpl.h ${TENSORRT_HEADERS}/NvInferRuntimeCommon.h)
add_library(moetrt-fake SHARED tests/fake/cuda.cpp tests/fake/tensorrt.cpp ${stubs}/stubs.hpp)
set_target_properties(moetrt-fake PROPERTIES PREFIX "" OUTPUT_NAME libcudart SUFFIX .so.13 LIBRARY_OUTPUT_DIRECTORY ${stubs}/lib CXX_VISIBILITY_PRESET default)
target_include_directories(moetrt-fake PRIVATE ${stubs})
target_include_directories(moetrt-fake SYSTEM PRIVATE ${TENSORRT_HEADERS} ${CUDA_HEADERS})
target_link_options(moetrt-fake PRIVATE -Wl,-Bsymbolic)
sanitize(moetrt-fake)
foreach(name libnvinfer.so.${major} libnccl.so.2)
  add_custom_command(TARGET moetrt-fake POST_BUILD COMMAND ${CMAKE_COMMAND} -E create_symlink libcudart.so.13 ${stubs}/lib/${name})
endforeach()

# What stands for the library of plugins: it tells a version, and is given to TensorRT by its path.
add_library(moetrt-fake-plugins SHARED tests/fake/plugins.cpp)
set_target_properties(moetrt-fake-plugins PROPERTIES OUTPUT_NAME moetrt-plugins LIBRARY_OUTPUT_DIRECTORY ${stubs}/plugins CXX_VISIBILITY_PRESET default)

add_executable(moetrt-tensorrt-tests tests/crew_test.cpp tests/tensorrt_plugins_test.cpp tests/tensorrt_test.cpp tests/main.cpp)
target_include_directories(moetrt-tensorrt-tests PRIVATE src)
target_include_directories(moetrt-tensorrt-tests SYSTEM PRIVATE ${MOETRT_HEADERS} ${TENSORRT_HEADERS} ${CUDA_HEADERS})
target_compile_options(moetrt-tensorrt-tests PRIVATE -Wall -Wextra)
target_link_libraries(moetrt-tensorrt-tests PRIVATE moetrt)
target_compile_definitions(moetrt-tensorrt-tests PRIVATE FAKE_PLUGINS="$<TARGET_FILE:moetrt-fake-plugins>" OTHER_LIBRARY="$<TARGET_FILE:moetrt-fake>")
add_dependencies(moetrt-tensorrt-tests moetrt-fake moetrt-fake-plugins)
add_test(NAME moetrt-tensorrt-tests COMMAND moetrt-tensorrt-tests)
set_tests_properties(moetrt-tensorrt-tests PROPERTIES ENVIRONMENT "LD_LIBRARY_PATH=${stubs}/lib")
