// What a loader asks of a library of plugins.
extern "C" const char* moetrt_plugins_version() { return "1"; }
