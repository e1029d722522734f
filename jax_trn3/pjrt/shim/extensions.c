// The extensions of the API that JAX looks for: Layouts, Shardings, MemoryDescriptions.
#include "shim.h"

struct PJRT_Layouts_MemoryLayout {
  Handle head;
  char* text;  // "{1,0}": XLA's notation, minor to major
  size_t size;
};

static PJRT_Layouts_MemoryLayout* layout_new(char* text, size_t size) {  // takes the text
  PJRT_Layouts_MemoryLayout* layout = text == NULL ? NULL : handle_new(KIND_LAYOUT, sizeof(*layout));
  if (layout == NULL) {
    free(text);
    return NULL;
  }
  layout->text = text;
  layout->size = size;
  return layout;
}

FUNCTION(Layouts_MemoryLayout_Destroy, layout) {
  TAKE_BACK(args->layout, KIND_LAYOUT);
  free(args->layout->text);
  handle_free(args->layout);
  return NULL;
}

static void serialized_layout_free(PJRT_Layouts_SerializedLayout* layout) { (void)layout; }

FUNCTION(Layouts_MemoryLayout_Serialize, serialized_layout_deleter) {
  NEED(args->layout, KIND_LAYOUT);
  args->serialized_bytes = args->layout->text;
  args->serialized_bytes_size = args->layout->size;
  args->serialized_layout = NULL;  // lives as long as the layout
  args->serialized_layout_deleter = serialized_layout_free;
  return NULL;
}

static PJRT_Error* dense(size_t rank, PJRT_Layouts_MemoryLayout** out) {
  size_t size = 0;
  if (rank > MAX_RANK)
    return error_new(PJRT_Error_Code_INVALID_ARGUMENT, "an array of %zu dimensions", rank);
  char* text = dense_layout(NULL, rank, &size);
  *out = layout_new(text, size);
  return *out == NULL ? error_no_memory() : NULL;
}

FUNCTION(Layouts_PJRT_Client_GetDefaultLayout, layout) {
  NEED(args->client, KIND_CLIENT);
  return dense(args->num_dims, &args->layout);
}

FUNCTION(Layouts_PJRT_Topology_GetDefaultLayout, layout) {
  NEED(args->topology_description, KIND_TOPOLOGY);
  return dense(args->num_dims, &args->layout);
}

FUNCTION(Layouts_PJRT_Buffer_MemoryLayout, layout) {
  NEED(args->buffer, KIND_BUFFER);
  if (args->buffer->layout == NULL) return dense(args->buffer->rank, &args->layout);
  args->layout = layout_new(strdup(args->buffer->layout), strlen(args->buffer->layout));
  return args->layout == NULL ? error_no_memory() : NULL;
}

PJRT_Layouts_MemoryLayout** layouts_new(const char** texts, const size_t* sizes, size_t n) {
  PJRT_Layouts_MemoryLayout** list = calloc(n + 1, sizeof(void*));
  for (size_t i = 0; list != NULL && i < n; i++) {
    char* text = malloc(sizes[i] + 1);
    if (text != NULL) memcpy(text, texts[i], sizes[i] + 1);
    list[i] = layout_new(text, sizes[i]);
    if (list[i] == NULL) {
      layouts_free(list, i);
      return NULL;
    }
    handle_set_owned(list[i], LENT);
  }
  return list;
}

char** layouts_unusual(PJRT_Layouts_MemoryLayout* const* layouts, const size_t* ranks, size_t n) {
  char** unusual = calloc(n + 1, sizeof(char*));
  for (size_t i = 0; unusual != NULL && i < n; i++) {
    size_t size = 0;
    char* usual = dense_layout(NULL, ranks[i], &size);
    if (usual == NULL || strcmp(usual, layouts[i]->text) != 0) unusual[i] = layouts[i]->text;
    free(usual);
  }
  return unusual;
}

void layouts_free(PJRT_Layouts_MemoryLayout** list, size_t n) {
  for (size_t i = 0; list != NULL && i < n; i++) {
    free(list[i]->text);
    handle_free(list[i]);
  }
  free(list);
}

FUNCTION(Layouts_PJRT_Executable_GetOutputLayouts, layouts) {
  NEED(args->executable, KIND_EXECUTABLE);
  args->num_outputs = args->executable->num_outputs;
  args->layouts = args->executable->output_layouts;
  return NULL;
}

FUNCTION(Layouts_PJRT_Executable_GetParameterLayouts, layouts) {
  NEED(args->executable, KIND_EXECUTABLE);
  args->num_parameters = args->executable->num_parameters;
  args->layouts = args->executable->parameter_layouts;
  return NULL;
}

// ---- The chain -------------------------------------------------------------------------------

#define DECLARE(name) HIDDEN PJRT_Error* PJRT_##name(PJRT_Args* args)
DECLARE(Shardings_PJRT_Executable_ParameterShardings);
DECLARE(Shardings_PJRT_Executable_OutputShardings);
DECLARE(DeviceDescription_MemoryDescriptions);
DECLARE(MemoryDescription_Kind);

static PJRT_TwoFunctionExtension memory_descriptions = {
    {sizeof(PJRT_TwoFunctionExtension), PJRT_Extension_Type_MemoryDescriptions, NULL},
    {PJRT_DeviceDescription_MemoryDescriptions, PJRT_MemoryDescription_Kind}};

static PJRT_TwoFunctionExtension shardings = {
    {sizeof(PJRT_TwoFunctionExtension), PJRT_Extension_Type_Shardings, &memory_descriptions.base},
    {PJRT_Shardings_PJRT_Executable_ParameterShardings,
     PJRT_Shardings_PJRT_Executable_OutputShardings}};

static PJRT_Layouts_Extension layouts = {
    {sizeof(PJRT_Layouts_Extension), PJRT_Extension_Type_Layouts, &shardings.base},
    {PJRT_Layouts_MemoryLayout_Destroy, PJRT_Layouts_MemoryLayout_Serialize,
     PJRT_Layouts_PJRT_Client_GetDefaultLayout, PJRT_Layouts_PJRT_Buffer_MemoryLayout,
     PJRT_Layouts_PJRT_Topology_GetDefaultLayout, PJRT_Layouts_PJRT_Executable_GetOutputLayouts,
     PJRT_Layouts_PJRT_Executable_GetParameterLayouts}};

HIDDEN PJRT_Extension_Base* extension_chain(void) { return &layouts.base; }
