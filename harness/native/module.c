/* freezeframe.harness.core.link._native, optional: the two loops of the link watch that see every frame (docs/decisions/0009). Pure: bytes in,
   bytes and counts out; no file, no clock, no thread. The one allocation whose size the wire tells, a body that has begun, has a bound. */
#include "native.h"

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "freezeframe.harness.core.link._native",
    .m_doc = "The link watch's loops over every frame; freezeframe.harness.core.link.skimpure is the reference.",
    .m_size = -1,
    .m_methods = capture_methods,
};

PyMODINIT_FUNC PyInit__native(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && add_skim_types(module) < 0)
        Py_CLEAR(module);
    return module;
}
