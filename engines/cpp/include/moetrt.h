/* The engines from C, and from whatever calls C. Functions give 0, or 1 with moetrt_error() saying why; nothing is thrown through them. */
#ifndef MOETRT_H
#define MOETRT_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define MOETRT_API __attribute__((visibility("default")))
#else
#define MOETRT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moetrt_chain moetrt_chain;
typedef struct moetrt_tokenizer moetrt_tokenizer;

/* Loads ONNX Runtime's shared library, once a process; NULL: libonnxruntime.so.1 as the loader finds it. */
MOETRT_API int moetrt_open_runtime(const char* library);

/* Opens the engines in a folder. threads: in all; 0 for the cores at hand. *chain is to be given to moetrt_close. */
MOETRT_API int moetrt_load(const char* folder, int threads, moetrt_chain** chain);
/* The same with the library of kernels that the engines were built with; NULL: the file of its name beside them, or none where they need none. */
MOETRT_API int moetrt_load_with_plugins(const char* folder, int threads, const char* plugins, moetrt_chain** chain);
MOETRT_API void moetrt_close(moetrt_chain* chain);

MOETRT_API int64_t moetrt_vocab(const moetrt_chain* chain);
MOETRT_API int64_t moetrt_max_context(const moetrt_chain* chain);
/* The token that begins every text; -1 where there is none. */
MOETRT_API int64_t moetrt_bos(const moetrt_chain* chain);

/* Logits of every token, from an empty cache, into room for count * vocab numbers. */
MOETRT_API int moetrt_logits(moetrt_chain* chain, const int64_t* token_ids, size_t count, float* logits);

/* New tokens, greedily, into room for max_tokens; *made is how many there are. The end-of-sequence token ends them unless ignore_eos. */
MOETRT_API int moetrt_generate(moetrt_chain* chain, const int64_t* token_ids, size_t count, int64_t max_tokens, int ignore_eos, int64_t* tokens, size_t* made);

/* Loads Oniguruma's shared library, which moetrt_encode needs, once a process; NULL: libonig.so.5 as the loader finds it. */
MOETRT_API int moetrt_open_patterns(const char* library);

/* Opens the tokenizer.json in a folder of engines. bos: put before every text; -1 for none. *tokenizer is to be given to moetrt_close_tokenizer. */
MOETRT_API int moetrt_load_tokenizer(const char* folder, int64_t bos, moetrt_tokenizer** tokenizer);
MOETRT_API void moetrt_close_tokenizer(moetrt_tokenizer* tokenizer);

/* Token ids of `bytes` bytes of UTF-8, as many as there is room for; *count is how many they are. */
MOETRT_API int moetrt_encode(const moetrt_tokenizer* tokenizer, const char* text, size_t bytes, int64_t* token_ids, size_t room, size_t* count);

/* The text of tokens, as many bytes of UTF-8 as there is room for, with no NUL after them; *bytes is how many they are. */
MOETRT_API int moetrt_decode(const moetrt_tokenizer* tokenizer, const int64_t* token_ids, size_t count, char* text, size_t room, size_t* bytes);

/* What went wrong last in this thread, with a line of what would work. Never NULL. */
MOETRT_API const char* moetrt_error(void);

#ifdef __cplusplus
}
#endif

#endif
