// PJRT_Executable (what a program is) and PJRT_LoadedExecutable (the program on its devices).
#include <stdio.h>

#include "shim.h"

// ---- From pjrt.api.ExecutableMetadata to C ---------------------------------------------------

// A tuple of str or bytes as two parallel arrays. NULL with an exception set.
static const char** string_list(PyObject* tuple, size_t n, size_t** sizes) {
  if (PyTuple_Size(tuple) != (Py_ssize_t)n) {
    if (PyErr_Occurred() == NULL)
      PyErr_Format(PyExc_ValueError, "metadata: expected %zu entries, got %zd", n,
                   PyTuple_Size(tuple));
    return NULL;
  }
  const char** strings = calloc(n + 1, sizeof(char*));
  *sizes = calloc(n + 1, sizeof(size_t));
  for (size_t i = 0; strings != NULL && *sizes != NULL && i < n; i++) {
    strings[i] = copy_string(PyTuple_GetItem(tuple, (Py_ssize_t)i), &(*sizes)[i]);
    if (strings[i] == NULL) break;
  }
  return strings;
}

static void string_list_free(const char** strings, size_t* sizes, size_t n) {
  for (size_t i = 0; strings != NULL && i < n; i++) free((char*)strings[i]);
  free(strings);
  free(sizes);
}

static const char** attribute_list(PyObject* object, const char* name, size_t n, size_t** sizes) {
  PyObject* tuple = PyErr_Occurred() ? NULL : PyObject_GetAttrString(object, name);
  const char** strings = tuple == NULL ? NULL : string_list(tuple, n, sizes);
  Py_XDECREF(tuple);
  return strings;
}

static PJRT_Layouts_MemoryLayout** attribute_layouts(PyObject* object, const char* name, size_t n) {
  size_t* sizes = NULL;
  const char** texts = attribute_list(object, name, n, &sizes);
  PJRT_Layouts_MemoryLayout** layouts = NULL;
  if (PyErr_Occurred() == NULL) {
    layouts = layouts_new(texts, sizes, n);
    if (layouts == NULL) PyErr_NoMemory();
  }
  string_list_free(texts, sizes, n);
  return layouts;
}

static bool read_outputs(PJRT_Executable* executable, PyObject* metadata) {
  PyObject* types = PyObject_GetAttrString(metadata, "output_types");
  PyObject* dims = types == NULL ? NULL : PyObject_GetAttrString(metadata, "output_dims");
  size_t total = 0, n = types == NULL || dims == NULL ? 0 : (size_t)PyTuple_Size(types);
  executable->num_outputs = n;
  executable->output_types = calloc(n + 1, sizeof(PJRT_Buffer_Type));
  executable->output_dims = calloc(n + 1, sizeof(int64_t*));
  executable->output_ranks = calloc(n + 1, sizeof(size_t));
  for (size_t i = 0; i < n; i++) {
    executable->output_ranks[i] = (size_t)PyTuple_Size(PyTuple_GetItem(dims, (Py_ssize_t)i));
    total += executable->output_ranks[i];
  }
  int64_t* next = executable->output_dims_flat = calloc(total + 1, sizeof(int64_t));
  for (size_t i = 0; i < n; i++) {
    executable->output_types[i] =
        (PJRT_Buffer_Type)PyLong_AsLong(PyTuple_GetItem(types, (Py_ssize_t)i));
    executable->output_dims[i] = next;
    PyObject* one = PyTuple_GetItem(dims, (Py_ssize_t)i);
    for (size_t k = 0; k < executable->output_ranks[i]; k++)
      *next++ = PyLong_AsLongLong(PyTuple_GetItem(one, (Py_ssize_t)k));
  }
  Py_XDECREF(types);
  Py_XDECREF(dims);
  return PyErr_Occurred() == NULL;
}

static bool read_parameters(PJRT_Executable* executable, PyObject* metadata) {
  PyObject* types = PyObject_GetAttrString(metadata, "parameter_types");
  PyObject* dims = types == NULL ? NULL : PyObject_GetAttrString(metadata, "parameter_dims");
  size_t n = executable->num_parameters = dims == NULL ? 0 : (size_t)PyTuple_Size(dims);
  executable->parameter_bytes = calloc(n + 1, sizeof(int64_t));
  for (size_t i = 0; i < n && PyErr_Occurred() == NULL; i++) {
    PyObject* one = PyTuple_GetItem(dims, (Py_ssize_t)i);
    size_t rank = (size_t)PyTuple_Size(one);
    int64_t* values = calloc(rank + 1, sizeof(int64_t));
    for (size_t k = 0; k < rank; k++)
      values[k] = PyLong_AsLongLong(PyTuple_GetItem(one, (Py_ssize_t)k));
    long type = PyLong_AsLong(PyTuple_GetItem(types, (Py_ssize_t)i));
    executable->parameter_bytes[i] = bytes_of_shape((PJRT_Buffer_Type)type, values, rank);
    free(values);
  }
  Py_XDECREF(types);
  Py_XDECREF(dims);
  return PyErr_Occurred() == NULL;
}

static bool read_donated(PJRT_Executable* executable, PyObject* metadata) {
  PyObject* donated = PyObject_GetAttrString(metadata, "donated");
  executable->donated = calloc(executable->num_parameters + 1, sizeof(bool));
  Py_ssize_t n = donated == NULL ? 0 : PyTuple_Size(donated);
  for (Py_ssize_t i = 0; i < n; i++) {
    long k = PyLong_AsLong(PyTuple_GetItem(donated, i));
    if (k < 0 || (size_t)k >= executable->num_parameters) continue;
    executable->donated[k] = executable->any_donated = true;
  }
  Py_XDECREF(donated);
  return PyErr_Occurred() == NULL;
}

static bool read_metadata(PJRT_Executable* executable, PyObject* metadata) {
  executable->name = attribute_string(metadata, "name", &executable->name_size);
  executable->fingerprint =
      attribute_string(metadata, "fingerprint", &executable->fingerprint_size);
  executable->options = attribute_string(metadata, "compile_options", &executable->options_size);
  executable->device_assignment =
      attribute_string(metadata, "device_assignment", &executable->device_assignment_size);
  executable->num_replicas = (int)attribute_int(metadata, "num_replicas");
  executable->num_partitions = (int)attribute_int(metadata, "num_partitions");
  executable->code_bytes = attribute_int(metadata, "code_bytes");
  executable->temporary_bytes = attribute_int(metadata, "temporary_bytes");
  if (PyErr_Occurred() != NULL || !read_outputs(executable, metadata) ||
      !read_parameters(executable, metadata))
    return false;
  size_t outputs = executable->num_outputs, parameters = executable->num_parameters;
  executable->output_kinds =
      attribute_list(metadata, "output_kinds", outputs, &executable->output_kind_sizes);
  executable->parameter_kinds =
      attribute_list(metadata, "parameter_kinds", parameters, &executable->parameter_kind_sizes);
  executable->output_layouts = attribute_layouts(metadata, "output_layouts", outputs);
  executable->parameter_layouts = attribute_layouts(metadata, "parameter_layouts", parameters);
  if (PyErr_Occurred() != NULL) return false;
  executable->unusual_layouts =
      layouts_unusual(executable->output_layouts, executable->output_ranks, outputs);
  if (executable->unusual_layouts == NULL) return PyErr_NoMemory() != NULL;
  PyObject* shardings = PyErr_Occurred() ? NULL : PyObject_GetAttrString(metadata, "output_shardings");
  if (shardings != NULL && shardings != Py_None) {
    executable->num_output_shardings = (size_t)PyTuple_Size(shardings);
    executable->output_shardings = string_list(shardings, executable->num_output_shardings,
                                               &executable->output_sharding_sizes);
    executable->parameter_shardings = attribute_list(metadata, "parameter_shardings", parameters,
                                                     &executable->parameter_sharding_sizes);
  }
  Py_XDECREF(shardings);
  return PyErr_Occurred() == NULL && read_donated(executable, metadata);
}

PJRT_Executable* executable_new(PyObject* object) {
  PJRT_Executable* executable = handle_new(KIND_EXECUTABLE, sizeof(*executable));
  if (executable == NULL) {
    Py_DECREF(object);
    PyErr_NoMemory();
    return NULL;
  }
  executable->object = object;
  pthread_mutex_init(&executable->lazy, NULL);
  PyObject* metadata = PyObject_GetAttrString(object, "metadata");
  bool ok = metadata != NULL && read_metadata(executable, metadata);
  Py_XDECREF(metadata);
  if (ok) return executable;
  executable_release(executable);
  return NULL;
}

void executable_release(PJRT_Executable* executable) {
  if (!handle_release(executable)) return;
  size_t outputs = executable->num_outputs, parameters = executable->num_parameters;
  string_list_free(executable->output_kinds, executable->output_kind_sizes, outputs);
  string_list_free(executable->parameter_kinds, executable->parameter_kind_sizes, parameters);
  free(executable->unusual_layouts);
  layouts_free(executable->output_layouts, outputs);
  layouts_free(executable->parameter_layouts, parameters);
  string_list_free(executable->output_shardings, executable->output_sharding_sizes,
                   executable->num_output_shardings);
  string_list_free(executable->parameter_shardings, executable->parameter_sharding_sizes,
                   parameters);
  free(executable->name);
  free(executable->fingerprint);
  free(executable->options);
  free(executable->device_assignment);
  free(executable->output_types);
  free(executable->output_dims);
  free(executable->output_dims_flat);
  free(executable->output_ranks);
  free(executable->donated);
  free(executable->parameter_bytes);
  named_values_free(executable->costs, executable->num_costs);
  free(executable->program);
  free(executable->program_format);
  pthread_mutex_destroy(&executable->lazy);
  bury(executable->object);
  handle_free(executable);
}

// ---- Answered from the metadata --------------------------------------------------------------

FUNCTION(Executable_Destroy, executable) {
  TAKE_BACK(args->executable, KIND_EXECUTABLE);
  executable_release(args->executable);
  return NULL;
}

FUNCTION(Executable_Name, executable_name_size) {
  NEED(args->executable, KIND_EXECUTABLE);
  args->executable_name = args->executable->name;
  args->executable_name_size = args->executable->name_size;
  return NULL;
}

FUNCTION(Executable_NumReplicas, num_replicas) {
  NEED(args->executable, KIND_EXECUTABLE);
  args->num_replicas = (size_t)args->executable->num_replicas;
  return NULL;
}

FUNCTION(Executable_NumPartitions, num_partitions) {
  NEED(args->executable, KIND_EXECUTABLE);
  args->num_partitions = (size_t)args->executable->num_partitions;
  return NULL;
}

FUNCTION(Executable_NumOutputs, num_outputs) {
  NEED(args->executable, KIND_EXECUTABLE);
  args->num_outputs = args->executable->num_outputs;
  return NULL;
}

FUNCTION(Executable_SizeOfGeneratedCodeInBytes, size_in_bytes) {
  NEED(args->executable, KIND_EXECUTABLE);
  args->size_in_bytes = args->executable->code_bytes;
  return NULL;
}

FUNCTION(Executable_Fingerprint, executable_fingerprint_size) {
  NEED(args->executable, KIND_EXECUTABLE);
  args->executable_fingerprint = args->executable->fingerprint;
  args->executable_fingerprint_size = args->executable->fingerprint_size;
  return NULL;
}

FUNCTION(Executable_OutputElementTypes, num_output_types) {
  NEED(args->executable, KIND_EXECUTABLE);
  args->output_types = args->executable->output_types;
  args->num_output_types = args->executable->num_outputs;
  return NULL;
}

FUNCTION(Executable_OutputDimensions, dim_sizes) {
  NEED(args->executable, KIND_EXECUTABLE);
  args->num_outputs = args->executable->num_outputs;
  args->dims = args->executable->output_dims_flat;
  args->dim_sizes = args->executable->output_ranks;
  return NULL;
}

FUNCTION(Executable_OutputMemoryKinds, memory_kind_sizes) {
  NEED(args->executable, KIND_EXECUTABLE);
  args->num_outputs = args->executable->num_outputs;
  args->memory_kinds = args->executable->output_kinds;
  args->memory_kind_sizes = args->executable->output_kind_sizes;
  return NULL;
}

FUNCTION(Executable_ParameterMemoryKinds, memory_kind_sizes) {
  NEED(args->executable, KIND_EXECUTABLE);
  args->num_parameters = args->executable->num_parameters;
  args->memory_kinds = args->executable->parameter_kinds;
  args->memory_kind_sizes = args->executable->parameter_kind_sizes;
  return NULL;
}

static void options_free(PJRT_SerializedCompileOptions* options) { (void)options; }

FUNCTION(Executable_GetCompileOptions, serialized_compile_options_deleter) {
  NEED(args->executable, KIND_EXECUTABLE);
  args->serialized_bytes = args->executable->options;
  args->serialized_bytes_size = args->executable->options_size;
  args->serialized_compile_options = NULL;
  args->serialized_compile_options_deleter = options_free;
  return NULL;
}

// Without shardings both lists are NULL, which the framework takes for "none".
FUNCTION(Shardings_PJRT_Executable_ParameterShardings, sharding_sizes) {
  NEED(args->executable, KIND_EXECUTABLE);
  args->num_parameters = args->executable->num_parameters;
  args->shardings = args->executable->parameter_shardings;
  args->sharding_sizes = args->executable->parameter_sharding_sizes;
  return NULL;
}

FUNCTION(Shardings_PJRT_Executable_OutputShardings, sharding_sizes) {
  NEED(args->executable, KIND_EXECUTABLE);
  args->num_outputs = args->executable->num_output_shardings;
  args->shardings = args->executable->output_shardings;
  args->sharding_sizes = args->executable->output_sharding_sizes;
  return NULL;
}

// ---- Answered by Python on demand ------------------------------------------------------------

static PJRT_Error* read_costs(PJRT_Executable* executable) {
  Entry entry;
  PJRT_Error* error = enter(&entry);
  if (error != NULL) return error;
  PyObject* dict = PyObject_CallMethod(executable->object, "cost_analysis", NULL);
  if (dict != NULL) executable->costs = named_values(dict, &executable->num_costs);
  if (executable->costs == NULL) error = error_from_python();
  Py_XDECREF(dict);
  leave(&entry);
  return error;
}

FUNCTION(Executable_GetCostAnalysis, properties) {
  NEED(args->executable, KIND_EXECUTABLE);
  PJRT_Executable* executable = args->executable;
  pthread_mutex_lock(&executable->lazy);
  PJRT_Error* error = executable->costs == NULL ? read_costs(executable) : NULL;
  pthread_mutex_unlock(&executable->lazy);
  args->properties = executable->costs;
  args->num_properties = executable->num_costs;
  return error;
}

// The fields after peak_memory_in_bytes came later; older callers have no room for them.
FUNCTION(Executable_GetCompiledMemoryStats, peak_memory_in_bytes) {
  NEED(args->executable, KIND_EXECUTABLE);
  Entry entry;
  PJRT_Error* error = enter(&entry);
  if (error != NULL) return error;
  PyObject* stats = PyObject_CallMethod(args->executable->object, "memory_stats", NULL);
  if (stats != NULL) {
#define READ(field) \
  if (HAS(args, field) && PyErr_Occurred() == NULL) args->field = attribute_int(stats, #field)
    READ(generated_code_size_in_bytes);
    READ(argument_size_in_bytes);
    READ(output_size_in_bytes);
    READ(alias_size_in_bytes);
    READ(temp_size_in_bytes);
    READ(host_generated_code_size_in_bytes);
    READ(host_argument_size_in_bytes);
    READ(host_output_size_in_bytes);
    READ(host_alias_size_in_bytes);
    READ(host_temp_size_in_bytes);
    READ(peak_memory_in_bytes);
    READ(total_size_in_bytes);
    READ(total_allocation_bytes);
    READ(indefinite_allocations);
    READ(peak_unpadded_heap_bytes);
#undef READ
  }
  if (PyErr_Occurred() != NULL) error = error_from_python();
  Py_XDECREF(stats);
  leave(&entry);
  return error;
}

static PJRT_Error* read_program(PJRT_Executable* executable) {
  Entry entry;
  PJRT_Error* error = enter(&entry);
  if (error != NULL) return error;
  PyObject* pair = PyObject_CallMethod(executable->object, "optimized_program", NULL);
  PyObject *format = NULL, *code = NULL;
  if (pair != NULL && PyArg_ParseTuple(pair, "OO", &format, &code)) {
    executable->program_format = copy_string(format, &executable->program_format_size);
    if (executable->program_format != NULL)
      executable->program = copy_string(code, &executable->program_size);
  }
  if (executable->program == NULL) error = error_from_python();
  Py_XDECREF(pair);
  leave(&entry);
  return error;
}

// Two calls: without `code` the size is asked for, with it the program is copied there.
FUNCTION(Executable_OptimizedProgram, program) {
  NEED(args->executable, KIND_EXECUTABLE);
  PJRT_Executable* executable = args->executable;
  PJRT_Program* program = args->program;
  if (program == NULL || !HAS(program, format_size))
    return error_new(PJRT_Error_Code_INVALID_ARGUMENT,
                     "PJRT_Executable_OptimizedProgram: no PJRT_Program");
  pthread_mutex_lock(&executable->lazy);
  PJRT_Error* error = executable->program == NULL ? read_program(executable) : NULL;
  pthread_mutex_unlock(&executable->lazy);
  if (error != NULL) return error;
  program->format = executable->program_format;
  program->format_size = executable->program_format_size;
  if (program->code == NULL) {
    program->code_size = executable->program_size;
    return NULL;
  }
  if (program->code_size < executable->program_size)
    return error_new(PJRT_Error_Code_INVALID_ARGUMENT,
                     "PJRT_Executable_OptimizedProgram: the program has %zu bytes, there is room "
                     "for %zu", executable->program_size, program->code_size);
  memcpy(program->code, executable->program, executable->program_size);
  return NULL;
}

static void serialized_free(PJRT_SerializedExecutable* serialized) { free(serialized); }

FUNCTION(Executable_Serialize, serialized_executable_deleter) {
  NEED(args->executable, KIND_EXECUTABLE);
  Entry entry;
  PJRT_Error* error = enter(&entry);
  if (error != NULL) return error;
  PyObject* bytes = PyObject_CallMethod(args->executable->object, "serialize", NULL);
  size_t size = 0;
  char* copy = bytes == NULL ? NULL : copy_string(bytes, &size);
  if (copy == NULL) error = error_from_python();
  Py_XDECREF(bytes);
  leave(&entry);
  args->serialized_bytes = copy;
  args->serialized_bytes_size = size;
  args->serialized_executable = (PJRT_SerializedExecutable*)copy;
  args->serialized_executable_deleter = serialized_free;
  return error;
}
