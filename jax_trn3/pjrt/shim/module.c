// The API table, GetPjrtApi(), and the Python module that holds them.
#include "shim.h"

HIDDEN PJRT_Extension_Base* extension_chain(void);

#define X(name) HIDDEN PJRT_Error* PJRT_##name(PJRT_Args* args);
PJRT_FUNCTIONS(X)
#undef X

// ---- What the platform does not do -----------------------------------------------------------

#define REFUSE(name, why)                                                       \
  HIDDEN PJRT_Error* PJRT_##name(PJRT_Args* args) {                             \
    (void)args;                                                                 \
    return error_new(PJRT_Error_Code_UNIMPLEMENTED, "PJRT_" #name ": " why);    \
  }

#define STREAMS "send and receive streams are not supported; jax's host callbacks need none"
REFUSE(CopyToDeviceStream_Destroy, STREAMS)
REFUSE(CopyToDeviceStream_AddChunk, STREAMS)
REFUSE(CopyToDeviceStream_TotalBytes, STREAMS)
REFUSE(CopyToDeviceStream_GranuleSize, STREAMS)
REFUSE(CopyToDeviceStream_CurrentBytes, STREAMS)
#define STAGED "staged transfers are not supported; use PJRT_Client_BufferFromHostBuffer"
REFUSE(AsyncHostToDeviceTransferManager_Destroy, STAGED)
REFUSE(AsyncHostToDeviceTransferManager_TransferData, STAGED)
REFUSE(Client_CreateBuffersForAsyncHostToDevice, STAGED)
REFUSE(AsyncHostToDeviceTransferManager_RetrieveBuffer, STAGED)
REFUSE(AsyncHostToDeviceTransferManager_Device, STAGED)
REFUSE(AsyncHostToDeviceTransferManager_BufferCount, STAGED)
REFUSE(AsyncHostToDeviceTransferManager_BufferSize, STAGED)
REFUSE(AsyncHostToDeviceTransferManager_SetBufferError, STAGED)
REFUSE(AsyncHostToDeviceTransferManager_AddMetadata, STAGED)
REFUSE(AsyncHostToDeviceTransferManager_TransferLiteral, STAGED)
#define RAW "partial reads are not supported; use PJRT_Buffer_ToHostBuffer"
REFUSE(Buffer_CopyRawToHost, RAW)
REFUSE(Buffer_CopyRawToHostFuture, RAW)
#define STATIC "all shapes are static"
REFUSE(Buffer_UnpaddedDimensions, STATIC)
REFUSE(Buffer_DynamicDimensionIndices, STATIC)
#define LATE "buffers are made with their values"
REFUSE(Client_CreateUninitializedBuffer, LATE)
REFUSE(Client_CreateAliasBuffer, LATE)
REFUSE(Client_FulfillAliasBuffer, LATE)
REFUSE(Client_CreateErrorBuffer, LATE)
REFUSE(Client_CreateViewOfDeviceBuffer, "foreign memory is not taken over; copy it through numpy")
REFUSE(Buffer_DonateWithControlDependency, "donate by jax.jit(donate_argnums=...)")
REFUSE(Buffer_Bitcast, "use jax.lax.bitcast_convert_type")
REFUSE(Client_DmaMap, "host memory needs no registration here")
REFUSE(Client_DmaUnmap, "host memory needs no registration here")
REFUSE(Device_PoisonExecution, "an execution cannot be poisoned from outside")
REFUSE(ExecuteContext_Create, "executions take no context")
REFUSE(ExecuteContext_Destroy, "executions take no context")
REFUSE(TopologyDescription_MakeCanonicalShapeForMemorySpace, "all layouts are row-major")
REFUSE(TopologyDescription_GetMemorySpaceKindIds, "ask the devices for their memories")

HIDDEN PJRT_Error* PJRT_Plugin_Initialize(PJRT_Args* args) {
  (void)args;
  return NULL;
}

// ---- Attributes ------------------------------------------------------------------------------

static PJRT_NamedValue* attributes;
static size_t num_attributes;

static PJRT_Error* read_attributes(void) {
  Entry entry;
  PJRT_Error* error = enter(&entry);
  if (error != NULL) return error;
  PyObject* owner = platform();
  PyObject* dict = owner == NULL ? NULL : PyObject_GetAttrString(owner, "attributes");
  if (dict != NULL) attributes = named_values(dict, &num_attributes);
  if (attributes == NULL) error = error_from_python();
  Py_XDECREF(dict);
  leave(&entry);
  return error;
}

FUNCTION(Plugin_Attributes, num_attributes) {
  if (attributes == NULL) {
    // An error from here would abort the process; a platform that cannot start says so in
    // Client_Create, which comes first.
    PJRT_Error* error = read_attributes();
    if (error != NULL) error_free(error);
  }
  args->attributes = attributes;
  args->num_attributes = num_attributes;
  return NULL;
}

// ---- The table -------------------------------------------------------------------------------

static PJRT_Api api = {
    .struct_size = sizeof(PJRT_Api),
    .pjrt_api_version = {sizeof(PJRT_Api_Version), NULL, PJRT_API_MAJOR, PJRT_API_MINOR},
    .slots = {
#define X(name) PJRT_##name,
        PJRT_FUNCTIONS(X)
#undef X
    }};

__attribute__((visibility("default"))) const PJRT_Api* GetPjrtApi(void) {
  api.extension_start = extension_chain();
  return &api;
}

// ---- The Python module -----------------------------------------------------------------------

static PyObject* module_set_platform(PyObject* self, PyObject* object) {
  (void)self;
  set_platform(object);
  Py_RETURN_NONE;
}

static PyObject* module_close(PyObject* self, PyObject* unused) {
  (void)self;
  (void)unused;
  if (!is_forked()) {
    close_python();
    wait_for_all();
  }
  Py_RETURN_NONE;
}

static PyObject* module_live_handles(PyObject* self, PyObject* unused) {
  (void)self;
  (void)unused;
  return PyLong_FromLong(live_handles());
}

static PyObject* module_keep(PyObject* self, PyObject* object) {
  (void)self;
  Py_INCREF(object);
  Py_RETURN_NONE;
}

static PyObject* module_give_up(PyObject* self, PyObject* message) {
  (void)self;
  Py_ssize_t size;
  const char* text = PyUnicode_AsUTF8AndSize(message, &size);
  if (text == NULL) return NULL;
  PJRT_Error* error = error_of(PJRT_Error_Code_UNAVAILABLE, text, (size_t)size);
  Py_BEGIN_ALLOW_THREADS
  give_up_waiting(error);
  Py_END_ALLOW_THREADS
  Py_RETURN_NONE;
}

static PyObject* module_is_forked(PyObject* self, PyObject* unused) {
  (void)self;
  (void)unused;
  return PyBool_FromLong(is_forked());
}

static PyMethodDef methods[] = {
    {"set_platform", module_set_platform, METH_O,
     "set_platform(platform): the jax_trn3.pjrt.api.Platform that the C API is answered from."},
    {"give_up", module_give_up, METH_O,
     "give_up(message): whatever waits for work in flight gets an UNAVAILABLE error, now and at exit:\n"
     "other processes have a part in it, and are gone."},
    {"keep", module_keep, METH_O,
     "keep(object): keeps it for ever, so that its destructor, which would not return, never runs."},
    {"is_forked", module_is_forked, METH_NOARGS,
     "is_forked(): whether this process was forked from one that has a client of the platform."},
    {"close", module_close, METH_NOARGS,
     "close(): waits for work in flight and takes no more from other threads. For atexit."},
    {"live_handles", module_live_handles, METH_NOARGS,
     "live_handles(): how many handles of the C API there are, to find leaks."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_shim", "The PJRT C API as a shared library.", -1, methods,
    NULL, NULL, NULL, NULL};

__attribute__((visibility("default"))) PyObject* PyInit__shim(void) {
  PyObject* module = PyModule_Create(&definition);
  watch_forks();
  if (module != NULL && PyModule_AddIntConstant(module, "API_MINOR", PJRT_API_MINOR) != 0)
    Py_CLEAR(module);
  return module;
}
