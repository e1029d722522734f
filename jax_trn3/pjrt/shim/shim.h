// Handles, and what the files of the shim offer each other.
//
// A handle is the address of real memory whose first word is NULL: from API 0.105 on the framework
// reads a function table there (PJRT_Memory, PJRT_Error) and takes NULL for "none".
//
// Three rules keep the process alive:
//  1. Whatever is bookkeeping is answered here, without Python and without the GIL. C++ destructors
//     call *_Destroy with an exception set, on any thread, and during interpreter shutdown.
//  2. A Python reference that dies without the GIL goes to the graveyard (python.c), which is
//     emptied by whoever holds the GIL next.
//  3. Python is entered only between enter() and leave(), which save the caller's exception and
//     refuse once the interpreter is on its way out.
#ifndef JAX_TRN3_PJRT_SHIM_SHIM_H_
#define JAX_TRN3_PJRT_SHIM_SHIM_H_

// No "#" in format strings: before Python 3.13 they need other functions than since, and one binary
// has to do for all.
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "abi.h"

#define HIDDEN __attribute__((visibility("hidden")))

// ---- Handles ---------------------------------------------------------------------------------

typedef enum {
  KIND_DEAD = 0,  // destroyed: a stale handle says so instead of crashing, until its memory is reused
  KIND_ERROR = 0x74726e33,  // an arbitrary base, so that foreign memory is not taken for a handle
  KIND_EVENT,
  KIND_CLIENT,
  KIND_DEVICE,
  KIND_MEMORY,
  KIND_DESCRIPTION,
  KIND_MEMORY_DESCRIPTION,
  KIND_TOPOLOGY,
  KIND_BUFFER,
  KIND_EXECUTABLE,
  KIND_LOADED_EXECUTABLE,
  KIND_LAYOUT,
} Kind;

typedef struct {
  const void* function_table;  // always NULL
  Kind kind;
  atomic_int references;  // the shim's and the framework's
  atomic_int owned;       // those of the framework's, each of which it destroys; or LENT
} Handle;

enum { LENT = -1 };  // part of another handle, with which it ends; not to be destroyed by itself

// Zeroed, with one reference, the framework's (devices and the like: LENT). NULL if memory is short.
HIDDEN void* handle_new(Kind kind, size_t size);
HIDDEN bool handle_release(void* handle);   // true when this was the last reference
HIDDEN void handle_free(void* handle);
HIDDEN void handle_hand_out(void* handle);  // one more reference, the framework's
// Makes a reference of the framework's ours, to be released; false if it has none.
HIDDEN bool handle_take_back(void* handle);
HIDDEN void handle_set_owned(void* handle, int owned);  // of a new one: 0 if it is ours, or LENT
HIDDEN int live_handles(void);
HIDDEN PJRT_Error* handle_error(const void* handle, Kind wanted, const char* function);

static inline bool handle_is(const void* handle, Kind wanted) {
  const Handle* head = (const Handle*)handle;
  return head != NULL && head->kind == wanted &&
         atomic_load_explicit(&head->owned, memory_order_relaxed) != 0;
}

// Returns INVALID_ARGUMENT from the calling function unless `handle` is a live handle of `wanted`.
#define NEED(handle, wanted)                                                            \
  do {                                                                                  \
    if (!handle_is((handle), (wanted))) return handle_error((handle), (wanted), __func__); \
  } while (0)

// The same for what is to be destroyed.
#define TAKE_BACK(handle, wanted)                                                        \
  do {                                                                                   \
    if (!handle_is((handle), (wanted)) || !handle_take_back(handle))                     \
      return handle_error((handle), (wanted), __func__);                                 \
  } while (0)

// Defines the API function PJRT_<name>. The caller's struct must reach at least to field `upto`:
// a framework older or newer than the shim passes a shorter or a longer one.
#define FUNCTION(name, upto)                                                                      \
  static PJRT_Error* name(PJRT_##name##_Args* args);                                              \
  HIDDEN PJRT_Error* PJRT_##name(PJRT_Args* raw) {                                                \
    const size_t needed = offsetof(PJRT_##name##_Args, upto) +                                    \
                          sizeof(((PJRT_##name##_Args*)0)->upto);                                 \
    if (raw == NULL || raw->struct_size < needed)                                                 \
      return error_new(PJRT_Error_Code_INVALID_ARGUMENT,                                          \
                       "PJRT_" #name "_Args: expected struct_size of at least %zu, got %zu",      \
                       needed, raw == NULL ? (size_t)0 : raw->struct_size);                       \
    return name((PJRT_##name##_Args*)raw);                                                        \
  }                                                                                               \
  static PJRT_Error* name(PJRT_##name##_Args* args)

// The most dimensions of an array; numpy's own limit is lower, and its own to enforce.
enum { MAX_RANK = 65536 };

// True if the caller's struct is long enough to hold `field`.
#define HAS(args, field) \
  ((args)->struct_size >= offsetof(__typeof__(*(args)), field) + sizeof((args)->field))

// ---- Errors (error.c) ------------------------------------------------------------------------

HIDDEN PJRT_Error* error_new(PJRT_Error_Code code, const char* format, ...)
    __attribute__((format(printf, 2, 3)));
HIDDEN PJRT_Error* error_of(PJRT_Error_Code code, const char* message, size_t size);
HIDDEN PJRT_Error* error_copy(const PJRT_Error* error);  // NULL of NULL
HIDDEN PJRT_Error* error_no_memory(void);    // a static one: needs no memory itself
HIDDEN PJRT_Error* error_from_python(void);  // takes the exception that is set; GIL held
HIDDEN PJRT_Error_Code error_code(const PJRT_Error* error);
HIDDEN const char* error_message(const PJRT_Error* error, size_t* size);
HIDDEN void error_free(PJRT_Error* error);

// ---- Python (python.c) -----------------------------------------------------------------------

typedef struct {
  PyGILState_STATE gil;
  PyObject *type, *value, *traceback;  // the caller's exception, put back by leave()
  bool python_thread;                  // not one of the framework's
} Entry;

// What died without the GIL, waiting for it: a Python object, or shards.
typedef struct Shards Shards;
typedef struct Grave {
  PyObject* object;
  Shards* shards;
  struct Grave* next;
} Grave;

HIDDEN PJRT_Error* enter(Entry* entry);  // NULL, or why Python cannot be entered any more
HIDDEN void leave(Entry* entry);
HIDDEN void close_python(void);  // GIL held: waits for work in flight; then only this thread enters
HIDDEN bool python_is_closed(void);
HIDDEN void watch_forks(void);  // once a process
HIDDEN void mind_forks(void);   // from now on, Python is not entered in a fork
HIDDEN bool is_forked(void);
HIDDEN void bury(PyObject* object);  // gives up a reference; any thread, no GIL
HIDDEN PyObject* platform(void);     // borrowed; NULL with an exception set if none can be had
HIDDEN int set_platform(PyObject* object);
typedef enum {
  IS_READY, IS_DELETED, BLOCK_UNTIL_READY, CONSUME_TOKEN, CONSUME_WITH_HANDLERS
} MethodName;
HIDDEN PyObject* call_method(PyObject* object, MethodName name);  // without arguments
HIDDEN PyObject* call_method_with(PyObject* object, MethodName name, PyObject* argument);
HIDDEN PyObject* int64_tuple(const int64_t* values, size_t n);
// Of what the framework hands over; ValueError for what cannot be memory.
HIDDEN PyObject* bytes_of(const char* data, size_t size);
HIDDEN PyObject* string_of(const char* data, size_t size);
HIDDEN char* copy_string(PyObject* text, size_t* size);  // of a str or bytes; NULL + exception
HIDDEN char* attribute_string(PyObject* object, const char* name, size_t* size);
HIDDEN long long attribute_int(PyObject* object, const char* name);  // -1 + exception
HIDDEN PJRT_NamedValue* named_values(PyObject* dict, size_t* n);     // NULL + exception
HIDDEN void named_values_free(PJRT_NamedValue* values, size_t n);
HIDDEN PyObject* options_dict(const PJRT_NamedValue* values, size_t n);
HIDDEN PyTypeObject* host_memory_type(void);
// A Python object whose buffer is memory of the framework's; `done` is set when it dies.
HIDDEN PyObject* host_memory_new(const void* data, PJRT_Event* done);

// ---- Events (event.c) ------------------------------------------------------------------------

HIDDEN PJRT_Event* event_new(void);    // the reference is the framework's
HIDDEN PJRT_Event* event_ready(void);  // the one that is always ready; not counted
HIDDEN PJRT_Event* event_keep(PJRT_Event* event);      // one more reference, the shim's
HIDDEN PJRT_Event* event_hand_out(PJRT_Event* event);  // or the framework's
HIDDEN void event_release(PJRT_Event* event);
HIDDEN bool event_is_done(PJRT_Event* event);
HIDDEN bool event_is_good(PJRT_Event* event);  // done, without an error
HIDDEN void event_set(PJRT_Event* event, PJRT_Error* error);  // takes the error
HIDDEN PJRT_Error* event_error(PJRT_Event* event);            // a copy, or NULL
HIDDEN PJRT_Error* event_wait_for_python(PJRT_Event* event);  // holding the GIL; minds Ctrl-C
HIDDEN PJRT_Error* event_wait(PJRT_Event* event);             // blocks; must not hold the GIL

// ---- Waiting for arrays (wait.c) -------------------------------------------------------------

// Where to put an array once it is ready: row-major, or as `minor_to_major` says.
typedef struct {
  struct PJRT_Client* client;
  PyObject* array;
  PJRT_Event* ready;  // the array's
  int index;
  void* destination;
  size_t size;
  int64_t* minor_to_major;  // owned; NULL for row-major
  size_t rank;
} HostCopy;

// Sets `event` when `waits` (a list of objects with block_until_ready()) are ready, after making
// `copy` if there is one. Takes its arguments. GIL held. Blocks only when the interpreter exits.
HIDDEN void wait_then_set(PyObject* waits, HostCopy* copy, PJRT_Event* event);
HIDDEN bool wait_for_array(PyObject* array);
HIDDEN PJRT_Error* host_copy_run(HostCopy* copy);  // GIL held
HIDDEN void host_copy_free(HostCopy* copy);        // GIL held
HIDDEN void wait_for_all(void);                    // GIL held, released inside
// Ends all waiting with an error, now and at exit: what is waited for may never come, because another
// process that has a part in it is gone. Takes the error. Without the GIL.
HIDDEN void give_up_waiting(PJRT_Error* error);
HIDDEN void wait_with_peers(void);  // from now on: this process has other processes to wait for
HIDDEN PJRT_Error* lost_error(void);  // that error, if it came to that

// ---- Devices, memories, topologies (device.c, topology.c) ------------------------------------

struct PJRT_MemoryDescription { Handle head; char* kind; size_t kind_size; int kind_id; };

struct PJRT_DeviceDescription {
  Handle head;
  int id, process_index;
  char *kind, *debug_string, *to_string;
  size_t kind_size, debug_string_size, to_string_size;
  PJRT_NamedValue* attributes;
  size_t num_attributes;
  size_t num_memories;
  PJRT_MemoryDescription** memory_kinds;
};

struct PJRT_TopologyDescription {
  Handle head;
  PyObject* object;
  char *name, *version;
  size_t name_size, version_size;
  PJRT_NamedValue* attributes;
  size_t num_attributes, num_devices;
  PJRT_DeviceDescription** descriptions;
};

struct PJRT_Memory {
  Handle head;
  struct PJRT_Device* device;
  int id, kind_id;
  char *kind, *debug_string, *to_string;
  size_t kind_size, debug_string_size, to_string_size;
  int64_t bytes_limit;  // 0: unlimited
  atomic_llong bytes_in_use, peak_bytes_in_use, num_allocs, largest_alloc_size;
  struct PJRT_Buffer* large;  // the list of those that count (account.c)
};

struct PJRT_Device {
  Handle head;
  struct PJRT_Client* client;
  PJRT_DeviceDescription* description;
  bool is_addressable;
  int local_hardware_id;
  PJRT_Memory** memories;  // the first is the default
  size_t num_memories;
};

struct PJRT_Client {
  Handle head;
  PyObject* object;
  int process_index;
  PJRT_TopologyDescription* topology;
  PJRT_Device** devices;  // in order of id
  PJRT_Device** addressable_devices;
  PJRT_Memory** memories;  // of the addressable devices
  size_t num_devices, num_addressable_devices, num_memories;
  // Programs with collectives: at most, being started, in flight; and when these will have landed.
  int flight_limit, starting, num_flights;
  PJRT_Event** flights;
};

HIDDEN PJRT_TopologyDescription* topology_new(PyObject* object);  // GIL; NULL + exception
HIDDEN void topology_free(PJRT_TopologyDescription* topology);
HIDDEN bool devices_new(PJRT_Client* client);  // from client->topology; GIL; false + exception
HIDDEN void devices_free(PJRT_Client* client);
HIDDEN void client_release(PJRT_Client* client);
HIDDEN PJRT_Device* client_device(const PJRT_Client* client, int id);

// A place for a program with collectives (flights.c), and for the place the event of the program's
// end; NULL if it did not start. GIL.
HIDDEN bool flight_begin(PJRT_Client* client);
HIDDEN void flight_started(PJRT_Client* client, PJRT_Event* landed);
HIDDEN void flights_free(PJRT_Client* client);

// ---- What lives in a memory (account.c) ------------------------------------------------------

HIDDEN void account_open(struct PJRT_Buffer* buffer);   // an allocation of buffer->bytes
HIDDEN void account_close(struct PJRT_Buffer* buffer);  // and its end
HIDDEN void account_peak(PJRT_Memory* memory, int64_t temporaries);  // while a program runs
// NULL if `bytes` more fit into a memory, of which `freed` come back at the same time; otherwise
// RESOURCE_EXHAUSTED, with who wants them and what is largest.
HIDDEN PJRT_Error* account_check(const PJRT_Memory* memory, int64_t bytes, int64_t freed,
                                 const char* who);
// The same for what is really allocated, by all devices together: beyond that the kernel would end
// the process.
HIDDEN PJRT_Error* account_check_host(const PJRT_Client* client, int64_t bytes,
                                      const char* who);

// ---- Shapes (shape.c) ------------------------------------------------------------------------

HIDDEN int bits_of_type(PJRT_Buffer_Type type);  // on the device; 0 for a token
// Bytes of an array on the device; -1 if a size is negative or the product does not fit.
HIDDEN int64_t bytes_of_shape(PJRT_Buffer_Type type, const int64_t* dims, size_t rank);
// "f32[2,3]".
HIDDEN const char* shape_text(PJRT_Buffer_Type type, const int64_t* dims, size_t rank, char* text,
                              size_t size);
// "{1,0}"; row-major if minor_to_major is NULL.
HIDDEN char* dense_layout(const int64_t* minor_to_major, size_t rank, size_t* size);

// ---- Buffers (shards.c, buffer.c) ------------------------------------------------------------

// A Python array of one or more shards; each buffer of a sharded array is one shard of it, so that
// an array which goes from one program to the next is never taken apart.
struct Shards {
  atomic_int references;
  int num_shards;
  PyObject* array;
  PJRT_Event* ready;
  Grave grave;
};

struct PJRT_Buffer {
  Handle head;
  PJRT_Client* client;
  PJRT_Memory* memory;
  _Atomic(Shards*) shards;  // NULL: deleted or donated
  int index;
  PJRT_Buffer_Type type;
  size_t rank;
  int64_t bytes;
  struct PJRT_Buffer *larger_before, *larger_after;  // in memory->large (account.c)
  char* layout;             // "{0,1}", minor to major; NULL for row-major
  int external_references;  // these two under `pins`
  PyObject* external;       // keeps the memory while external_references > 0
  _Atomic(void*) pointer;   // where the values are, once somebody asked
  int64_t dims[];
};

HIDDEN Shards* shards_new(PyObject* array, int num_shards, PJRT_Event* ready);  // takes both; GIL
HIDDEN void shards_release(Shards* shards);  // GIL
HIDDEN void bury_shards(Shards* shards);     // any thread, no GIL
// The event as the framework's, or NULL if there are no shards any more; any thread, no GIL.
HIDDEN PJRT_Event* shards_ready(_Atomic(Shards*)* place);
// Takes one reference of `shards`. layout: NULL for row-major.
HIDDEN PJRT_Buffer* buffer_new(PJRT_Memory* memory, PJRT_Buffer_Type type, const int64_t* dims,
                               size_t rank, const char* layout, Shards* shards, int index);
HIDDEN void buffer_delete(PJRT_Buffer* buffer);
// The array behind a buffer and, if asked for, its event; new references. NULL if it is deleted. GIL.
HIDDEN PyObject* buffer_array(PJRT_Buffer* buffer, PJRT_Event** ready);
HIDDEN void buffer_free(PJRT_Buffer* buffer);
HIDDEN PJRT_Error* buffer_deleted_error(const PJRT_Buffer* buffer, const char* what);
// The event of arrays that may still be computed, or may have failed, being ready. GIL; NULL with an
// exception set when memory is short.
// may_fail: whether an array that calls itself ready has to be asked if it failed.
HIDDEN PJRT_Event* completion_of(PyObject* arrays, PyObject* extra, bool may_fail);

// ---- Executables (executable.c) --------------------------------------------------------------

struct PJRT_Executable {
  Handle head;
  PyObject* object;
  char *name, *fingerprint, *options;
  size_t name_size, fingerprint_size, options_size;
  int num_replicas, num_partitions;
  int64_t code_bytes, temporary_bytes;
  size_t num_outputs, num_parameters;
  PJRT_Buffer_Type* output_types;
  int64_t** output_dims;     // by output
  int64_t* output_dims_flat;  // as the API hands them out: all in one row
  size_t* output_ranks;
  const char **output_kinds, **parameter_kinds;
  size_t *output_kind_sizes, *parameter_kind_sizes;
  size_t num_output_shardings;  // one for a program without outputs: that of the empty tuple
  const char **output_shardings, **parameter_shardings;  // serialized xla.OpSharding, or NULL
  size_t *output_sharding_sizes, *parameter_sharding_sizes;
  PJRT_Layouts_MemoryLayout **output_layouts, **parameter_layouts;
  char** unusual_layouts;  // of outputs that are not row-major; NULL for those that are
  char* device_assignment;  // serialized xla.DeviceAssignmentProto
  size_t device_assignment_size;
  bool* donated;             // by parameter
  int64_t* parameter_bytes;  // of one device's shard
  bool any_donated;
  // Answered by Python on demand, then kept:
  pthread_mutex_t lazy;
  PJRT_NamedValue* costs;
  size_t num_costs;
  char *program, *program_format;
  size_t program_size, program_format_size;
};

struct PJRT_LoadedExecutable {
  Handle head;
  PJRT_Client* client;
  PJRT_Executable* executable;
  PyObject *object, *launch, *handlers, *runs;
  uint64_t num_runs;  // under the GIL; told to Python in runs[0]
  bool has_collectives, can_fail;  // see LoadedExecutable in api.py
  bool has_peers;  // parts of it run in other processes
  atomic_bool deleted;
  PJRT_Device** devices;
  struct { int replica, partition; }* logical_ids;
  size_t num_devices;
  PJRT_Memory** output_memories;  // num_devices rows of num_outputs
  int64_t output_bytes;           // of those in a device's default memory, on one device
};

// Layouts as "{1,0}", minor to major. NULL when memory is short.
HIDDEN PJRT_Layouts_MemoryLayout** layouts_new(const char** texts, const size_t* sizes, size_t n);
// The texts of those that are not row-major, NULL for the others; borrowed from the layouts.
HIDDEN char** layouts_unusual(PJRT_Layouts_MemoryLayout* const* layouts, const size_t* ranks,
                              size_t n);
HIDDEN void layouts_free(PJRT_Layouts_MemoryLayout** list, size_t n);

HIDDEN PJRT_Executable* executable_new(PyObject* object);  // takes the object; GIL; NULL + exception
HIDDEN void executable_release(PJRT_Executable* executable);
HIDDEN PJRT_LoadedExecutable* loaded_executable_new(PJRT_Client* client, PyObject* object);

#endif  // JAX_TRN3_PJRT_SHIM_SHIM_H_
