// How many programs with collectives may be in flight at once; see Client.flight_limit in api.py.
//
// In C, because an interrupt must not come between a place and its program: Python code in the main
// thread can be interrupted at any point.
#include <unistd.h>

#include "shim.h"

// With the GIL. Waits until there is room: for the oldest program, or for another thread that is
// starting one. The oldest is not counted meanwhile; it may start others, from a host callback.
bool flight_begin(PJRT_Client* client) {
  if (client->flights == NULL && (client->flights = PyList_New(0)) == NULL) return false;
  while (client->starting + PyList_Size(client->flights) >= client->flight_limit) {
    if (PyList_Size(client->flights) == 0) {
      Py_BEGIN_ALLOW_THREADS
      usleep(100);
      Py_END_ALLOW_THREADS
      continue;
    }
    PyObject* oldest = Py_NewRef(PyList_GetItem(client->flights, 0));
    PyList_SetSlice(client->flights, 0, 1, NULL);
    PyObject* done = call_method(oldest, BLOCK_UNTIL_READY);
    if (done == NULL) PyErr_Clear();  // whoever asks for its outputs will be told
    Py_XDECREF(done);
    Py_DECREF(oldest);
  }
  client->starting++;
  return true;
}

void flight_started(PJRT_Client* client, PyObject* token) {
  client->starting--;
  if (token != NULL && PyList_Append(client->flights, token) != 0) PyErr_Clear();
}
