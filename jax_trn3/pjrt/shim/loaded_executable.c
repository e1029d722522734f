// PJRT_LoadedExecutable: execution, the one call that has to be fast.
#include "shim.h"

static bool read_devices(PJRT_LoadedExecutable* loaded, PyObject* object) {
  PJRT_Client* client = loaded->client;
  PyObject* rows = PyObject_GetAttrString(object, "devices");  // (device id, replica, partition)
  Py_ssize_t n = rows == NULL ? -1 : PyTuple_Size(rows);
  if (n < 0) return false;
  loaded->devices = calloc((size_t)n + 1, sizeof(void*));
  loaded->logical_ids = calloc((size_t)n + 1, sizeof(loaded->logical_ids[0]));
  loaded->num_devices = (size_t)n;
  for (Py_ssize_t i = 0; i < n; i++) {
    int id, replica, partition;
    if (!PyArg_ParseTuple(PyTuple_GetItem(rows, i), "iii", &id, &replica, &partition)) break;
    loaded->devices[i] = client_device(client, id);
    loaded->logical_ids[i].replica = replica;
    loaded->logical_ids[i].partition = partition;
    if (loaded->devices[i] == NULL) PyErr_Format(PyExc_ValueError, "no device has id %d", id);
  }
  Py_DECREF(rows);
  return PyErr_Occurred() == NULL;
}

static bool attribute_bool(PyObject* object, const char* name, bool* value) {
  PyObject* attribute = PyObject_GetAttrString(object, name);
  *value = attribute == Py_True;
  Py_XDECREF(attribute);
  return attribute != NULL;
}

static bool read_launch(PJRT_LoadedExecutable* loaded, PyObject* object) {
  loaded->launch = PyObject_GetAttrString(object, "launch");
  loaded->handlers = loaded->launch == NULL ? NULL : PyObject_GetAttrString(object, "handlers");
  loaded->runs = loaded->handlers == NULL ? NULL : PyObject_GetAttrString(object, "runs");
  return loaded->runs != NULL &&
         attribute_bool(object, "has_collectives", &loaded->has_collectives) &&
         attribute_bool(object, "can_fail", &loaded->can_fail);
}

static PJRT_Memory* memory_of_kind(const PJRT_Device* device, const char* kind) {
  for (size_t k = 0; k < device->num_memories; k++)
    if (strcmp(device->memories[k]->kind, kind) == 0) return device->memories[k];
  return device->memories[0];
}

static void loaded_executable_free(PJRT_LoadedExecutable* loaded) {
  if (loaded->executable != NULL) executable_release(loaded->executable);
  bury(loaded->object);
  bury(loaded->launch);
  bury(loaded->handlers);
  bury(loaded->runs);
  free(loaded->devices);
  free(loaded->logical_ids);
  free(loaded->output_memories);
  client_release(loaded->client);
  handle_free(loaded);
}

PJRT_LoadedExecutable* loaded_executable_new(PJRT_Client* client, PyObject* object) {
  PJRT_LoadedExecutable* loaded = handle_new(KIND_LOADED_EXECUTABLE, sizeof(*loaded));
  if (loaded == NULL) {
    Py_DECREF(object);
    PyErr_NoMemory();
    return NULL;
  }
  loaded->client = client;
  atomic_fetch_add(&client->head.references, 1);
  PyObject* executable = PyObject_GetAttrString(object, "executable");
  loaded->executable = executable == NULL ? NULL : executable_new(executable);
  if (loaded->executable != NULL) handle_set_owned(loaded->executable, 0);
  loaded->object = object;
  bool ok = loaded->executable != NULL && read_launch(loaded, object) && read_devices(loaded, object);
  if (ok)
    loaded->has_peers = (size_t)loaded->executable->num_replicas *
                            (size_t)loaded->executable->num_partitions > loaded->num_devices;
  size_t outputs = ok ? loaded->executable->num_outputs : 0;
  loaded->output_memories = calloc(loaded->num_devices * outputs + 1, sizeof(void*));
  if (ok && loaded->output_memories == NULL) ok = PyErr_NoMemory() != NULL;
  for (size_t d = 0; ok && d < loaded->num_devices; d++) {
    PJRT_Device* device = loaded->devices[d];
    for (size_t k = 0; k < outputs; k++) {
      PJRT_Memory* memory = memory_of_kind(device, loaded->executable->output_kinds[k]);
      loaded->output_memories[d * outputs + k] = memory;
      if (d == 0 && memory == device->memories[0])
        loaded->output_bytes += bytes_of_shape(loaded->executable->output_types[k],
                                               loaded->executable->output_dims[k],
                                               loaded->executable->output_ranks[k]);
    }
  }
  if (ok) return loaded;
  loaded_executable_free(loaded);
  return NULL;
}

FUNCTION(LoadedExecutable_Destroy, executable) {
  TAKE_BACK(args->executable, KIND_LOADED_EXECUTABLE);
  loaded_executable_free(args->executable);
  return NULL;
}

FUNCTION(LoadedExecutable_GetExecutable, executable) {
  NEED(args->loaded_executable, KIND_LOADED_EXECUTABLE);
  args->executable = args->loaded_executable->executable;
  handle_hand_out(args->executable);
  return NULL;
}

FUNCTION(LoadedExecutable_AddressableDevices, num_addressable_devices) {
  NEED(args->executable, KIND_LOADED_EXECUTABLE);
  args->addressable_devices = args->executable->devices;
  args->num_addressable_devices = args->executable->num_devices;
  return NULL;
}

FUNCTION(LoadedExecutable_AddressableDeviceLogicalIds, num_addressable_device_logical_ids) {
  NEED(args->executable, KIND_LOADED_EXECUTABLE);
  args->addressable_device_logical_ids = (PJRT_LogicalDeviceIds*)args->executable->logical_ids;
  args->num_addressable_device_logical_ids = args->executable->num_devices;
  return NULL;
}

static void device_assignment_free(PJRT_DeviceAssignmentSerialized* unused) { (void)unused; }

FUNCTION(LoadedExecutable_GetDeviceAssignment, serialized_device_assignment_deleter) {
  NEED(args->executable, KIND_LOADED_EXECUTABLE);
  args->serialized_bytes = args->executable->executable->device_assignment;
  args->serialized_bytes_size = args->executable->executable->device_assignment_size;
  args->serialized_device_assignment = NULL;  // lives as long as the executable
  args->serialized_device_assignment_deleter = device_assignment_free;
  return NULL;
}

FUNCTION(LoadedExecutable_Delete, executable) {
  NEED(args->executable, KIND_LOADED_EXECUTABLE);
  atomic_store(&args->executable->deleted, true);
  return NULL;
}

FUNCTION(LoadedExecutable_IsDeleted, is_deleted) {
  NEED(args->executable, KIND_LOADED_EXECUTABLE);
  args->is_deleted = atomic_load(&args->executable->deleted);
  return NULL;
}

FUNCTION(LoadedExecutable_Fingerprint, executable_fingerprint_size) {
  NEED(args->executable, KIND_LOADED_EXECUTABLE);
  args->executable_fingerprint = args->executable->executable->fingerprint;
  args->executable_fingerprint_size = args->executable->executable->fingerprint_size;
  return NULL;
}

// ---- Execution -------------------------------------------------------------------------------

static PJRT_Error* check_call(PJRT_LoadedExecutable_Execute_Args* args) {
  PJRT_LoadedExecutable* loaded = args->executable;
  const char* name = loaded->executable->name;
  if (atomic_load(&loaded->deleted))
    return error_new(PJRT_Error_Code_INVALID_ARGUMENT, "%s has been deleted", name);
  if (args->num_args != loaded->executable->num_parameters)
    return error_new(PJRT_Error_Code_INVALID_ARGUMENT, "%s takes %zu arguments, %zu were given",
                     name, loaded->executable->num_parameters, args->num_args);
  if (args->num_devices != loaded->num_devices)
    return error_new(PJRT_Error_Code_INVALID_ARGUMENT,
                     "%s runs on %zu devices, arguments were given for %zu", name,
                     loaded->num_devices, args->num_devices);
  if (HAS(args, execute_device) && args->execute_device != NULL &&
      (loaded->num_devices != 1 || args->execute_device != loaded->devices[0]))
    return error_new(PJRT_Error_Code_UNIMPLEMENTED,
                     "%s was compiled for other devices than the one it is to run on; compile it "
                     "for that device", name);
  const PJRT_ExecuteOptions* options = args->options;
  if (options != NULL && (!HAS(options, num_non_donatable_input_indices) ||
                          (options->non_donatable_input_indices == NULL &&
                           options->num_non_donatable_input_indices > 0)))
    return error_new(PJRT_Error_Code_INVALID_ARGUMENT, "%s: malformed PJRT_ExecuteOptions", name);
  if (options != NULL && (options->num_send_ops > 0 || options->num_recv_ops > 0))
    return error_new(PJRT_Error_Code_UNIMPLEMENTED,
                     "send and receive callbacks are not supported; host callbacks of jax "
                     "(pure_callback, io_callback, debug.print) are, and need none");
  bool takes = args->num_args > 0, gives = loaded->executable->num_outputs > 0;
  for (size_t d = 0; d < args->num_devices; d++) {
    if ((takes && (args->argument_lists == NULL || args->argument_lists[d] == NULL)) ||
        (gives && (args->output_lists == NULL || args->output_lists[d] == NULL)))
      return error_new(PJRT_Error_Code_INVALID_ARGUMENT, "%s: no list of %s for device %zu", name,
                       takes ? "arguments or outputs" : "outputs", d);
    for (size_t k = 0; k < args->num_args; k++) {
      NEED(args->argument_lists[d][k], KIND_BUFFER);
      const PJRT_Buffer* buffer = args->argument_lists[d][k];
      int64_t wanted = loaded->executable->parameter_bytes[k];
      // XLA says so itself for one device, and ends the process for several.
      if (args->num_devices > 1 && buffer->bytes != wanted)
        return error_new(PJRT_Error_Code_INVALID_ARGUMENT,
                         "%s takes shards of size %lld as argument %zu, but got a buffer with "
                         "incompatible size %lld", name, (long long)wanted, k,
                         (long long)buffer->bytes);
      const PJRT_Device* device = buffer->memory->device;
      if (device != loaded->devices[d])  // XLA looks at some arguments only
        return error_new(PJRT_Error_Code_INVALID_ARGUMENT,
                         "%s runs on device %s%s, but argument %zu is on %s", name,
                         loaded->devices[d]->description->to_string,
                         device->client == loaded->client ? "" : " of another client", k,
                         device->description->to_string);
      if (atomic_load(&args->argument_lists[d][k]->shards) == NULL)
        return buffer_deleted_error(args->argument_lists[d][k], name);
    }
  }
  return NULL;
}

static bool may_donate(const PJRT_LoadedExecutable_Execute_Args* args, size_t k) {
  if (!args->executable->executable->donated[k]) return false;
  const PJRT_ExecuteOptions* options = args->options;
  for (size_t i = 0; options != NULL && i < options->num_non_donatable_input_indices; i++)
    if (options->non_donatable_input_indices[i] == (int64_t)k) return false;
  return true;
}

// What the program may take over from the arguments on device d.
static int64_t donated_bytes(const PJRT_LoadedExecutable_Execute_Args* args, size_t d) {
  int64_t bytes = 0;
  for (size_t k = 0; k < args->num_args; k++)
    if (may_donate(args, k) &&
        args->argument_lists[d][k]->memory == args->executable->devices[d]->memories[0])
      bytes += args->argument_lists[d][k]->bytes;
  return bytes;
}

// Whether outputs and temporaries fit beside all that lives on the devices, and on the host.
static PJRT_Error* check_room(const PJRT_LoadedExecutable_Execute_Args* args) {
  enum { LITTLE = 1 << 26 };  // too little for the host to notice
  PJRT_LoadedExecutable* loaded = args->executable;
  const char* name = loaded->executable->name;
  int64_t bytes = loaded->output_bytes + loaded->executable->temporary_bytes, all = 0;
  PJRT_Error* error = NULL;
  for (size_t d = 0; d < args->num_devices && error == NULL; d++) {
    PJRT_Memory* memory = loaded->devices[d]->memories[0];
    bool fits = bytes <= memory->bytes_limit - atomic_load(&memory->bytes_in_use);
    if (fits && bytes < LITTLE) continue;
    int64_t donated = donated_bytes(args, d);
    if (!fits) error = account_check(memory, bytes, donated, name);
    if (bytes > donated) all += bytes - donated;
  }
  return error != NULL ? error : account_check_host(loaded->client, all, name);
}

// Argument k of all devices as one array; a new reference, or NULL with an exception set. Buffers
// that come from different arrays are put together once and from then on share the result.
static PyObject* argument(PJRT_LoadedExecutable_Execute_Args* args, size_t k) {
  size_t n = args->num_devices;
  Shards* shards = atomic_load(&args->argument_lists[0][k]->shards);
  bool together = shards != NULL && shards->num_shards == (int)n;
  for (size_t d = 0; together && d < n; d++) {
    PJRT_Buffer* buffer = args->argument_lists[d][k];
    together = atomic_load(&buffer->shards) == shards && buffer->index == (int)d;
  }
  if (together) return Py_NewRef(shards->array);
  PyObject* parts = PyList_New((Py_ssize_t)n);
  PyObject* waits = PyList_New(0);
  for (size_t d = 0; parts != NULL && d < n; d++) {
    PJRT_Buffer* buffer = args->argument_lists[d][k];
    Shards* one = atomic_load(&buffer->shards);
    if (one == NULL) {
      PyErr_SetString(PyExc_ValueError, "an argument was deleted during the call");
      Py_CLEAR(parts);
    } else {
      PyList_SetItem(parts, (Py_ssize_t)d, Py_BuildValue("(Oi)", one->array, buffer->index));
    }
  }
  PyObject* array = parts == NULL || waits == NULL ? NULL
      : PyObject_CallMethod(args->executable->client->object, "assemble", "O", parts);
  Py_XDECREF(parts);
  if (array != NULL) PyList_Append(waits, array);
  PJRT_Event* ready = array == NULL ? NULL : completion_of(waits, NULL, true);
  Py_XDECREF(waits);
  if (ready == NULL) {
    Py_XDECREF(array);
    return NULL;
  }
  // Releasing the old shards may let other threads run, and these may do the same to the same
  // buffers: from here on the array is this call's own reference.
  Shards* joined = shards_new(Py_NewRef(array), (int)n, ready);
  if (joined == NULL) {
    Py_DECREF(array);
    return PyErr_NoMemory();
  }
  atomic_store(&joined->references, (int)n);
  for (size_t d = 0; d < n; d++) {
    PJRT_Buffer* buffer = args->argument_lists[d][k];
    Shards* old = atomic_exchange(&buffer->shards, joined);
    buffer->index = (int)d;
    if (old != NULL) shards_release(old);
  }
  return array;
}

static PyObject* arguments(PJRT_LoadedExecutable_Execute_Args* args) {
  const PJRT_Executable* executable = args->executable->executable;
  PyObject* list = PyList_New((Py_ssize_t)args->num_args);
  for (size_t k = 0; list != NULL && k < args->num_args; k++) {
    PyObject* array = argument(args, k);
    if (array != NULL && executable->donated[k] && !may_donate(args, k)) {
      PyObject* copy =
          PyObject_CallMethod(args->executable->client->object, "duplicate", "O", array);
      Py_DECREF(array);
      array = copy;
    }
    if (array == NULL) Py_CLEAR(list);
    else PyList_SetItem(list, (Py_ssize_t)k, array);
  }
  return list;
}

// What the program did take stops being the caller's, also if the execution failed.
static void delete_donated(PJRT_LoadedExecutable_Execute_Args* args, PyObject* list) {
  if (!args->executable->executable->any_donated) return;
  PyObject *type, *value, *traceback;  // of the execution
  PyErr_Fetch(&type, &value, &traceback);
  for (size_t k = 0; k < args->num_args; k++) {
    if (!may_donate(args, k)) continue;
    PyObject* gone = call_method(PyList_GetItem(list, (Py_ssize_t)k), IS_DELETED);
    if (gone == Py_True)
      for (size_t d = 0; d < args->num_devices; d++) buffer_delete(args->argument_lists[d][k]);
    Py_XDECREF(gone);
  }
  PyErr_Restore(type, value, traceback);
}

static void drop_outputs(PJRT_LoadedExecutable_Execute_Args* args, size_t outputs) {
  for (size_t d = 0; d < args->num_devices; d++) {
    for (size_t k = 0; k < outputs; k++) {
      if (args->output_lists[d][k] != NULL) buffer_free(args->output_lists[d][k]);
      args->output_lists[d][k] = NULL;
    }
  }
}

// Fills output_lists from a list of arrays. False with an exception set, and nothing left behind.
static bool make_outputs(PJRT_LoadedExecutable_Execute_Args* args, PyObject* arrays,
                         PJRT_Event* ready) {
  PJRT_LoadedExecutable* loaded = args->executable;
  PJRT_Executable* executable = loaded->executable;
  size_t n = args->num_devices, outputs = executable->num_outputs;
  if ((size_t)PyList_Size(arrays) != outputs) {
    PyErr_Format(PyExc_RuntimeError, "%s: expected %zu outputs, got %zd", executable->name, outputs,
                 PyList_Size(arrays));
    return false;
  }
  bool complete = true;
  for (size_t k = 0; k < outputs; k++) {
    PyObject* array = Py_NewRef(PyList_GetItem(arrays, (Py_ssize_t)k));
    Shards* shards = shards_new(array, (int)n, event_keep(ready));
    if (shards != NULL) atomic_store(&shards->references, (int)n);
    for (size_t d = 0; d < n; d++) {
      args->output_lists[d][k] = shards == NULL ? NULL
          : buffer_new(loaded->output_memories[d * outputs + k], executable->output_types[k],
                       executable->output_dims[k], executable->output_ranks[k],
                       executable->unusual_layouts[k], shards, (int)d);
      complete = complete && args->output_lists[d][k] != NULL;
    }
  }
  for (size_t d = 0; complete && executable->temporary_bytes > 0 && d < n; d++)
    account_peak(loaded->devices[d]->memories[0], executable->temporary_bytes);
  if (complete) return true;
  drop_outputs(args, outputs);
  PyErr_NoMemory();
  return false;
}

// Once another process is gone: whether the program has a part there, or takes what never came. With
// the GIL.
static PJRT_Error* check_lost(const PJRT_LoadedExecutable_Execute_Args* args) {
  PJRT_Error* error = lost_error();
  if (error == NULL || args->executable->has_peers) return error;
  error_free(error);
  for (size_t d = 0; d < args->num_devices; d++) {
    for (size_t k = 0; k < args->num_args; k++) {
      Shards* shards = atomic_load(&args->argument_lists[d][k]->shards);
      error = shards == NULL ? NULL : event_error(shards->ready);
      if (error != NULL) return error;
    }
  }
  return NULL;
}

// Whether the outputs could turn out to be errors: by what the program does, or by what it takes.
static bool may_fail(const PJRT_LoadedExecutable_Execute_Args* args) {
  bool may = args->executable->can_fail;
  for (size_t k = 0; k < args->num_args && !may; k++) {
    for (size_t d = 0; d < args->num_devices && !may; d++) {
      Shards* shards = atomic_load(&args->argument_lists[d][k]->shards);
      may = shards == NULL || !event_is_good(shards->ready);
    }
  }
  return may;
}

// Tells Python that the program was started once more. False with an exception set.
static bool count_run(PJRT_LoadedExecutable* loaded) {
  PyObject* count = PyLong_FromUnsignedLongLong(++loaded->num_runs);
  return count != NULL && PyList_SetItem(loaded->runs, 0, count) == 0;
}

// Starts the program. The outputs as a list, and its token if the outputs do not tell when it is
// done. No Python code runs in here if `launch` is none: an interrupt cannot come in between.
static PyObject* launch(PJRT_LoadedExecutable* loaded, PyObject* list, bool may_fail,
                        PyObject** token, PJRT_Event** ready) {
  PJRT_Client* client = loaded->client;
  bool wants_token = loaded->has_collectives || loaded->executable->num_outputs == 0;
  if (!count_run(loaded)) return NULL;
  if (loaded->has_collectives && !flight_begin(client)) return NULL;
  PyObject* results = PyObject_CallFunctionObjArgs(loaded->launch, list,
                                                   wants_token ? Py_True : Py_False, NULL);
  if (results != NULL && wants_token) *token = call_method(results, CONSUME_TOKEN);
  PyObject* arrays = results == NULL || PyErr_Occurred() != NULL ? NULL
      : call_method_with(results, CONSUME_WITH_HANDLERS, loaded->handlers);
  Py_XDECREF(results);
  if (arrays != NULL) *ready = completion_of(arrays, *token, may_fail);
  // A process that was lost since check_lost() will not be waited for.
  PJRT_Error* lost = loaded->has_peers ? lost_error() : NULL;
  if (lost != NULL && *ready != NULL) event_set(*ready, lost);
  else error_free(lost);
  if (loaded->has_collectives) flight_started(client, *ready);
  return arrays;
}

FUNCTION(LoadedExecutable_Execute, device_complete_events) {
  NEED(args->executable, KIND_LOADED_EXECUTABLE);
  PJRT_Error* error = check_call(args);
  if (error == NULL) error = check_room(args);
  if (error != NULL) return error;
  Entry entry;
  error = enter(&entry);
  if (error != NULL) return error;
  error = check_lost(args);
  if (error != NULL) {
    leave(&entry);
    return error;
  }
  PJRT_Event* ready = NULL;
  PyObject *arrays = NULL, *token = NULL;
  PyObject* list = arguments(args);
  if (list != NULL) {
    arrays = launch(args->executable, list, may_fail(args), &token, &ready);
    delete_donated(args, list);
  }
  if (ready == NULL || !make_outputs(args, arrays, ready)) {
    error = error_from_python();
  } else if (args->device_complete_events != NULL) {
    for (size_t d = 0; d < args->num_devices; d++)
      args->device_complete_events[d] = event_hand_out(ready);
  }
  event_release(ready);
  Py_XDECREF(token);
  Py_XDECREF(arrays);
  Py_XDECREF(list);
  leave(&entry);
  return error;
}
