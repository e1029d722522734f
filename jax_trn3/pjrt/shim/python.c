// Into Python and out again: the GIL, the caller's exception, the graveyard, and conversions.
#include <unistd.h>

#include "shim.h"

#ifndef PLATFORM_MODULE
#error "PLATFORM_MODULE: the Python module whose function platform() makes the platform"
#endif

// ---- The gate --------------------------------------------------------------------------------

static atomic_int inside;    // threads between enter() and leave()
static atomic_bool closed;   // the interpreter is shutting down
static pthread_t last_user;  // the one thread that may still enter then

bool python_is_closed(void) { return atomic_load(&closed); }

void close_python(void) {
  last_user = pthread_self();
  atomic_store(&closed, true);
  Py_BEGIN_ALLOW_THREADS
  while (atomic_load(&inside) > 0) usleep(1000);
  Py_END_ALLOW_THREADS
}

static void empty_graveyard(void);

// A fork has one thread, and none of those that the framework and the device wait for.
static atomic_bool has_clients, forked;

static void after_fork(void) {
  if (atomic_load(&has_clients)) atomic_store(&forked, true);
}

void watch_forks(void) { pthread_atfork(NULL, NULL, after_fork); }
void mind_forks(void) { atomic_store(&has_clients, true); }
bool is_forked(void) { return atomic_load(&forked); }

// A Python thread that comes along during shutdown must not go back: jaxlib would ask for the GIL on
// its behalf, and CPython would kill the thread inside C++ code that cannot be unwound, which aborts
// the process. It sleeps here until the process is gone, as from Python 3.14 on all such threads do.
//
// jaxlib calls some functions (to serialize a topology, for one) without giving up the GIL, for which
// the main thread would then wait. Whether this thread has it, the limited API does not tell; the
// function that does is there in every version.
extern int PyGILState_Check(void);

static void park(void) {
  if (PyGILState_Check()) PyEval_SaveThread();
  for (;;) pause();
}

static bool is_last_user(void) {
  return pthread_equal(last_user, pthread_self()) && Py_IsInitialized();
}

PJRT_Error* enter(Entry* entry) {
  if (is_forked())
    return error_new(PJRT_Error_Code_FAILED_PRECONDITION,
                     "this process was forked from one that uses the platform, and has none of its "
                     "threads; start processes by spawning them (multiprocessing.get_context("
                     "\"spawn\")), or fork before the platform is first used");
  entry->python_thread = PyGILState_GetThisThreadState() != NULL;
  atomic_fetch_add(&inside, 1);
  if (atomic_load(&closed) && !is_last_user()) {
    atomic_fetch_sub(&inside, 1);
    if (entry->python_thread && Py_IsInitialized()) park();
    return error_new(PJRT_Error_Code_UNAVAILABLE,
                     "the Python interpreter is shutting down; the platform takes no more work");
  }
  entry->gil = PyGILState_Ensure();
  PyErr_Fetch(&entry->type, &entry->value, &entry->traceback);
  empty_graveyard();
  return NULL;
}

void leave(Entry* entry) {
  PyErr_Restore(entry->type, entry->value, entry->traceback);
  PyGILState_Release(entry->gil);
  bool strange = atomic_load(&closed) && entry->python_thread && !is_last_user();
  atomic_fetch_sub(&inside, 1);
  if (strange) park();
}

// ---- The graveyard ---------------------------------------------------------------------------

static _Atomic(Grave*) graves;

static void empty_graveyard(void) {
  if (atomic_load_explicit(&graves, memory_order_relaxed) == NULL) return;
  Grave* grave = atomic_exchange(&graves, NULL);
  while (grave != NULL) {
    Grave* next = grave->next;
    if (grave->shards != NULL) {
      shards_release(grave->shards);  // the grave is part of it
    } else {
      Py_DECREF(grave->object);
      free(grave);
    }
    grave = next;
  }
}

static int empty_graveyard_soon(void* unused) {
  (void)unused;
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  empty_graveyard();
  PyErr_Restore(type, value, traceback);
  return 0;
}

static void dig(Grave* grave) {
  grave->next = atomic_load(&graves);
  while (!atomic_compare_exchange_weak(&graves, &grave->next, grave)) {}
  // The first grave asks the main thread to come by; whoever enters Python earlier does it.
  if (grave->next == NULL && !python_is_closed()) Py_AddPendingCall(empty_graveyard_soon, NULL);
}

void bury(PyObject* object) {
  Grave* grave = object == NULL ? NULL : malloc(sizeof(Grave));
  if (grave == NULL) return;  // if memory is short: a leak, in a process that has no memory left
  *grave = (Grave){object, NULL, NULL};
  dig(grave);
}

void bury_shards(Shards* shards) {
  if (shards == NULL) return;
  if (atomic_fetch_sub(&shards->references, 1) == 1) {
    shards->references = 1;
    dig(&shards->grave);
  }
}

// ---- The platform ----------------------------------------------------------------------------

static PyObject* the_platform;

int set_platform(PyObject* object) {
  PyObject* old = the_platform;
  Py_INCREF(object);
  the_platform = object;
  Py_XDECREF(old);
  return 0;
}

// A client that loads the library without JAX (pypjrt, a C program with an interpreter) has not
// been through initialize(): the platform then comes from the module named at build time.
PyObject* platform(void) {
  if (the_platform != NULL) return the_platform;
  PyObject* module = PyImport_ImportModule(PLATFORM_MODULE);
  if (module == NULL) return NULL;
  PyObject* object = PyObject_CallMethod(module, "platform", NULL);
  Py_DECREF(module);
  if (object == NULL) return NULL;
  set_platform(object);
  Py_DECREF(object);
  return the_platform;
}

// ---- Calls -----------------------------------------------------------------------------------

// PyObject_CallMethod makes a new string of the name at every call; these are on the fast path.
static PyObject* text_of(MethodName name) {
  static const char* const texts[] = {"is_ready", "is_deleted", "block_until_ready",
                                      "consume_token", "consume_with_handlers"};
  static PyObject* names[sizeof(texts) / sizeof(texts[0])];
  if (names[name] == NULL) names[name] = PyUnicode_InternFromString(texts[name]);
  return names[name];
}

PyObject* call_method(PyObject* object, MethodName name) {
  PyObject* text = text_of(name);
  return text == NULL ? NULL : PyObject_CallMethodObjArgs(object, text, NULL);
}

PyObject* call_method_with(PyObject* object, MethodName name, PyObject* argument) {
  PyObject* text = text_of(name);
  return text == NULL ? NULL : PyObject_CallMethodObjArgs(object, text, argument, NULL);
}

// ---- Conversions -----------------------------------------------------------------------------

PyObject* int64_tuple(const int64_t* values, size_t n) {
  PyObject* tuple = PyTuple_New((Py_ssize_t)n);
  for (size_t i = 0; tuple != NULL && i < n; i++) {
    PyObject* value = PyLong_FromLongLong(values[i]);
    if (value == NULL) Py_CLEAR(tuple);
    else PyTuple_SetItem(tuple, (Py_ssize_t)i, value);
  }
  return tuple;
}

static bool is_memory(const char* data, size_t size) {
  if (size <= PY_SSIZE_T_MAX && (data != NULL || size == 0)) return true;
  PyErr_Format(PyExc_ValueError, "a string of %zu bytes at %s", size,
               data == NULL ? "NULL" : "an address");
  return false;
}

PyObject* bytes_of(const char* data, size_t size) {
  if (!is_memory(data, size)) return NULL;
  return PyBytes_FromStringAndSize(size == 0 ? "" : data, (Py_ssize_t)size);
}

PyObject* string_of(const char* data, size_t size) {
  if (!is_memory(data, size)) return NULL;
  return PyUnicode_FromStringAndSize(size == 0 ? "" : data, (Py_ssize_t)size);
}

char* copy_string(PyObject* text, size_t* size) {
  const char* data;
  Py_ssize_t length;
  if (PyUnicode_Check(text)) {
    data = PyUnicode_AsUTF8AndSize(text, &length);
    if (data == NULL) return NULL;
  } else {
    char* bytes;
    if (PyBytes_AsStringAndSize(text, &bytes, &length) != 0) return NULL;
    data = bytes;
  }
  char* copy = malloc((size_t)length + 1);
  if (copy == NULL) {
    PyErr_NoMemory();
    return NULL;
  }
  memcpy(copy, data, (size_t)length);
  copy[length] = 0;
  *size = (size_t)length;
  return copy;
}

char* attribute_string(PyObject* object, const char* name, size_t* size) {
  PyObject* value = PyObject_GetAttrString(object, name);
  char* copy = value == NULL ? NULL : copy_string(value, size);
  Py_XDECREF(value);
  return copy;
}

long long attribute_int(PyObject* object, const char* name) {
  PyObject* value = PyObject_GetAttrString(object, name);
  long long result = value == NULL ? -1 : PyLong_AsLongLong(value);
  Py_XDECREF(value);
  return result;
}

static bool named_value(PJRT_NamedValue* out, PyObject* key, PyObject* value) {
  size_t size;
  out->struct_size = sizeof(PJRT_NamedValue);
  out->value_size = 1;
  out->name = copy_string(key, &out->name_size);
  if (out->name == NULL) return false;
  if (PyBool_Check(value)) {
    out->type = PJRT_NamedValue_kBool;
    out->bool_value = value == Py_True;
  } else if (PyLong_Check(value)) {
    out->type = PJRT_NamedValue_kInt64;
    out->int64_value = PyLong_AsLongLong(value);
  } else if (PyFloat_Check(value)) {
    out->type = PJRT_NamedValue_kFloat;
    out->float_value = (float)PyFloat_AsDouble(value);
  } else if (PyTuple_Check(value)) {
    Py_ssize_t n = PyTuple_Size(value);
    int64_t* list = calloc((size_t)n + 1, sizeof(int64_t));
    for (Py_ssize_t i = 0; list != NULL && i < n; i++)
      list[i] = PyLong_AsLongLong(PyTuple_GetItem(value, i));
    out->type = PJRT_NamedValue_kInt64List;
    out->int64_array_value = list;
    out->value_size = (size_t)n;
  } else {
    out->type = PJRT_NamedValue_kString;
    out->string_value = copy_string(value, &size);
    out->value_size = out->string_value == NULL ? 0 : size;
  }
  return PyErr_Occurred() == NULL;
}

PJRT_NamedValue* named_values(PyObject* dict, size_t* n) {
  PyObject *key, *value;
  Py_ssize_t position = 0, size = PyDict_Size(dict);
  if (size < 0) return NULL;
  PJRT_NamedValue* values = calloc((size_t)size + 1, sizeof(PJRT_NamedValue));
  *n = 0;
  while (values != NULL && PyDict_Next(dict, &position, &key, &value)) {
    if (!named_value(&values[(*n)++], key, value)) {
      named_values_free(values, *n);
      return NULL;
    }
  }
  if (values == NULL) PyErr_NoMemory();
  return values;
}

void named_values_free(PJRT_NamedValue* values, size_t n) {
  for (size_t i = 0; values != NULL && i < n; i++) {
    free((char*)values[i].name);
    if (values[i].type == PJRT_NamedValue_kString) free((char*)values[i].string_value);
    if (values[i].type == PJRT_NamedValue_kInt64List) free((int64_t*)values[i].int64_array_value);
  }
  free(values);
}

PyObject* options_dict(const PJRT_NamedValue* values, size_t n) {
  if (n > 0 && (values == NULL || !HAS(values, value_size)))
    return PyErr_Format(PyExc_ValueError, "%zu options, but no array of PJRT_NamedValue", n);
  PyObject* dict = PyDict_New();
  for (size_t i = 0; dict != NULL && i < n; i++) {
    const PJRT_NamedValue* option = &values[i];
    PyObject* value = NULL;
    switch (option->type) {
      case PJRT_NamedValue_kString:
        value = string_of(option->string_value, option->value_size);
        break;
      case PJRT_NamedValue_kInt64: value = PyLong_FromLongLong(option->int64_value); break;
      case PJRT_NamedValue_kInt64List:
        if (is_memory((const char*)option->int64_array_value, option->value_size))
          value = int64_tuple(option->int64_array_value, option->value_size);
        break;
      case PJRT_NamedValue_kFloat: value = PyFloat_FromDouble(option->float_value); break;
      case PJRT_NamedValue_kBool: value = PyBool_FromLong(option->bool_value); break;
      default: PyErr_Format(PyExc_ValueError, "option %zu has an unknown type", i);
    }
    PyObject* key = value == NULL ? NULL : string_of(option->name, option->name_size);
    if (key == NULL || value == NULL || PyDict_SetItem(dict, key, value) != 0) Py_CLEAR(dict);
    Py_XDECREF(key);
    Py_XDECREF(value);
  }
  return dict;
}

// ---- Host memory of the framework's, as a Python buffer --------------------------------------

// The framework's memory stays valid until `done` is set. Arrays made over it keep this object
// alive, so that its death says when nobody reads the memory any more: zero-copy, truthfully.
typedef struct {
  PyObject_HEAD
  const char* data;
  Py_ssize_t before, after;  // the bytes that belong to the array, around `data`
  PJRT_Event* done;
} HostMemory;

static void host_memory_dealloc(PyObject* self) {
  PJRT_Event* done = ((HostMemory*)self)->done;
  PyTypeObject* type = Py_TYPE(self);
  event_set(done, NULL);
  event_release(done);
  freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
  release(self);
  Py_DECREF(type);
}

static int host_memory_getbuffer(PyObject* self, Py_buffer* view, int flags) {
  HostMemory* memory = (HostMemory*)self;
  return PyBuffer_FillInfo(view, self, (char*)memory->data - memory->before,
                           memory->before + memory->after, 1, flags);
}

static PyObject* host_memory_window(PyObject* self, PyObject* args) {
  HostMemory* memory = (HostMemory*)self;
  if (!PyArg_ParseTuple(args, "nn", &memory->before, &memory->after)) return NULL;
  if (memory->before < 0 || memory->after < 0)
    return PyErr_Format(PyExc_ValueError, "window(%zd, %zd): negative", memory->before,
                        memory->after);
  Py_INCREF(self);
  return self;
}

static PyMethodDef host_memory_methods[] = {
    {"window", host_memory_window, METH_VARARGS,
     "window(before, after): says how many bytes around the first element are the array's."},
    {NULL, NULL, 0, NULL}};

static PyType_Slot host_memory_slots[] = {
    {Py_tp_dealloc, host_memory_dealloc},
    {Py_tp_methods, host_memory_methods},
    {Py_bf_getbuffer, host_memory_getbuffer},
    {Py_tp_doc, "Host memory that the framework lends to the device."},
    {0, NULL}};

static PyType_Spec host_memory_spec = {
    "jax_trn3.pjrt._shim.HostMemory", sizeof(HostMemory), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, host_memory_slots};

PyTypeObject* host_memory_type(void) {
  static PyTypeObject* type;
  if (type == NULL) type = (PyTypeObject*)PyType_FromSpec(&host_memory_spec);
  return type;
}

PyObject* host_memory_new(const void* data, PJRT_Event* done) {
  PyTypeObject* type = host_memory_type();
  if (type == NULL) return NULL;
  allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
  HostMemory* memory = (HostMemory*)allocate(type, 0);
  if (memory == NULL) return NULL;
  memory->data = data;
  memory->before = memory->after = 0;
  memory->done = event_keep(done);
  return (PyObject*)memory;
}
