/* The hooks of hf_dumper.capture.taps, compiled: the same work in a fifth of the time.
 *
 * Between two hooks a model streams its weights through the caches, so every line of Python in a
 * hook runs cold. This file does the common case: a plain, contiguous tensor in the memory of this
 * process, seen before with the same shape and type, is copied into the chunk at hand. Anything
 * else goes to the Python functions that an Intake is given; they are the whole of the semantics.
 *
 * A tensor is looked at through the DLPack exchange table of its class (DLPack 1.3, torch >= 2.10),
 * which needs no header of torch. It says nothing of the negative bit, which is asked for apart.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <structmember.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

/* --- what DLPack 1.x lays down --------------------------------------------------------------- */

typedef struct {
    void *data;
    struct {
        int32_t type, id;
    } device;
    int32_t ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape;
    int64_t *strides;
    uint64_t byte_offset;
} DLTensor;

typedef struct {
    struct {
        uint32_t major, minor;
    } version;
    void *previous;
    void *allocate, *from_object, *to_object;
    int (*look)(void *object, DLTensor *out);
    void *stream;
} ExchangeTable;

enum { DL_CPU = 1, DL_COMPLEX = 5, DL_MAJOR = 1 };

static const ExchangeTable *exchange;
static PyTypeObject *tensor_type, *parameter_type;
static PyObject *is_neg;

/* --- Intake ---------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    char recording, inputs, outputs, check_device;
    Py_ssize_t stamp, sequence, epoch, batch, large;
    Py_ssize_t address, used, size;
    PyObject *calls, *rows, *not_tensors;
    PyObject *plain, *describe, *make_room, *push, *take, *take_large, *fail;
} Intake;

static PyMemberDef intake_members[] = {
    {"recording", T_BOOL, offsetof(Intake, recording), 0, NULL},
    {"inputs", T_BOOL, offsetof(Intake, inputs), 0, NULL},
    {"outputs", T_BOOL, offsetof(Intake, outputs), 0, NULL},
    {"check_device", T_BOOL, offsetof(Intake, check_device), 0, NULL},
    {"stamp", T_PYSSIZET, offsetof(Intake, stamp), 0, NULL},
    {"sequence", T_PYSSIZET, offsetof(Intake, sequence), 0, NULL},
    {"epoch", T_PYSSIZET, offsetof(Intake, epoch), 0, NULL},
    {"batch", T_PYSSIZET, offsetof(Intake, batch), 0, NULL},
    {"large", T_PYSSIZET, offsetof(Intake, large), 0, NULL},
    {"address", T_PYSSIZET, offsetof(Intake, address), 0, NULL},
    {"used", T_PYSSIZET, offsetof(Intake, used), 0, NULL},
    {"size", T_PYSSIZET, offsetof(Intake, size), 0, NULL},
    {"calls", T_OBJECT_EX, offsetof(Intake, calls), 0, NULL},
    {"rows", T_OBJECT_EX, offsetof(Intake, rows), 0, NULL},
    {"not_tensors", T_OBJECT_EX, offsetof(Intake, not_tensors), 0, NULL},
    {"plain", T_OBJECT_EX, offsetof(Intake, plain), 0, NULL},
    {"describe", T_OBJECT_EX, offsetof(Intake, describe), 0, NULL},
    {"make_room", T_OBJECT_EX, offsetof(Intake, make_room), 0, NULL},
    {"push", T_OBJECT_EX, offsetof(Intake, push), 0, NULL},
    {"take", T_OBJECT_EX, offsetof(Intake, take), 0, NULL},
    {"take_large", T_OBJECT_EX, offsetof(Intake, take_large), 0, NULL},
    {"fail", T_OBJECT_EX, offsetof(Intake, fail), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static int intake_traverse(Intake *self, visitproc visit, void *arg) {
    Py_VISIT(self->calls);
    Py_VISIT(self->rows);
    Py_VISIT(self->not_tensors);
    Py_VISIT(self->plain);
    Py_VISIT(self->describe);
    Py_VISIT(self->make_room);
    Py_VISIT(self->push);
    Py_VISIT(self->take);
    Py_VISIT(self->take_large);
    Py_VISIT(self->fail);
    return 0;
}

static int intake_clear(Intake *self) {
    Py_CLEAR(self->calls);
    Py_CLEAR(self->rows);
    Py_CLEAR(self->not_tensors);
    Py_CLEAR(self->plain);
    Py_CLEAR(self->describe);
    Py_CLEAR(self->make_room);
    Py_CLEAR(self->push);
    Py_CLEAR(self->take);
    Py_CLEAR(self->take_large);
    Py_CLEAR(self->fail);
    return 0;
}

static void intake_dealloc(Intake *self) {
    PyObject_GC_UnTrack(self);
    intake_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyTypeObject Intake_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "hf_dumper.capture._hooks.Intake",
    .tp_basicsize = sizeof(Intake),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_dealloc = (destructor)intake_dealloc,
    .tp_traverse = (traverseproc)intake_traverse,
    .tp_clear = (inquiry)intake_clear,
    .tp_members = intake_members,
};

/* --- what is known of the tensors of one slot ------------------------------------------------- */

enum { MOST_DIMENSIONS = 6, VARIANTS = 4, MOST_DEPTH = 8, MOST_NODES = 256 };

typedef struct {
    PyObject *what; /* the Description */
    Py_ssize_t epoch, nbytes;
    int64_t shape[MOST_DIMENSIONS];
    uint32_t dtype;
    int32_t ndim;
} Variant;

typedef struct Node {
    PyObject *key;         /* an int or str: which argument, which item */
    PyObject *slot, *param; /* both str */
    Variant variants[VARIANTS];
    int known, next;
    struct Node **items;
    Py_ssize_t count;
} Node;

static void node_free(Node *node) {
    if (node == NULL)
        return;
    for (Py_ssize_t i = 0; i < node->count; i++)
        node_free(node->items[i]);
    PyMem_Free(node->items);
    for (int i = 0; i < node->known; i++)
        Py_XDECREF(node->variants[i].what);
    Py_XDECREF(node->key);
    Py_XDECREF(node->slot);
    Py_XDECREF(node->param);
    PyMem_Free(node);
}

/* Steals nothing; returns NULL with an exception set. */
static Node *node_new(PyObject *key, PyObject *slot, PyObject *param) {
    Node *node = slot && param ? PyMem_Calloc(1, sizeof(Node)) : NULL;
    if (node == NULL) {
        if (!PyErr_Occurred())
            PyErr_NoMemory();
        return NULL;
    }
    node->key = Py_XNewRef(key);
    node->slot = Py_NewRef(slot);
    node->param = Py_NewRef(param);
    return node;
}

static Node *node_add(Node *parent, PyObject *key, PyObject *param) {
    Node **grown = PyMem_Realloc(parent->items, (parent->count + 1) * sizeof(Node *));
    if (grown == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    parent->items = grown;
    PyObject *slot = PyUnicode_FromFormat("%U.%S", parent->slot, key);
    Node *node = node_new(key, slot, param);
    Py_XDECREF(slot);
    if (node != NULL)
        parent->items[parent->count++] = node;
    return node;
}

/* The i-th item of a tuple or list; items are added in order. */
static Node *node_item(Node *parent, Py_ssize_t i) {
    if (i < parent->count)
        return parent->items[i];
    PyObject *key = PyLong_FromSsize_t(i);
    if (key == NULL)
        return NULL;
    int named = PyUnicode_GET_LENGTH(parent->param) > 0;
    PyObject *param = named ? PyUnicode_FromFormat("%U.%zd", parent->param, i)
                            : Py_NewRef(parent->param);
    Node *node = param == NULL ? NULL : node_add(parent, key, param);
    Py_XDECREF(param);
    Py_DECREF(key);
    return node;
}

/* The keyword argument of that name; `hint` is where it was found last. */
static Node *node_named(Node *parent, PyObject *name, Py_ssize_t hint) {
    if (hint < parent->count && parent->items[hint]->key == name)
        return parent->items[hint];
    for (Py_ssize_t i = 0; i < parent->count; i++) {
        if (PyUnicode_Compare(parent->items[i]->key, name) == 0)
            return parent->items[i];
        if (PyErr_Occurred())
            return NULL;
    }
    return node_add(parent, name, name);
}

/* --- Tap -------------------------------------------------------------------------------------- */

typedef struct {
    Py_ssize_t number, index, stamp;
} Open;

typedef struct {
    PyObject_HEAD
    PyObject *source, *params;
    Intake *intake; /* NULL in a tap that is inert */
    Py_ssize_t stamp, calls;
    Open *open;
    Py_ssize_t opened, room;
    Node *arguments, *keywords, *output;
} Tap;

static int tap_traverse(Tap *self, visitproc visit, void *arg) {
    Py_VISIT(self->source);
    Py_VISIT(self->params);
    Py_VISIT(self->intake);
    return 0;
}

static int tap_clear(Tap *self) {
    Py_CLEAR(self->source);
    Py_CLEAR(self->params);
    Py_CLEAR(self->intake);
    return 0;
}

static void tap_dealloc(Tap *self) {
    PyObject_GC_UnTrack(self);
    tap_clear(self);
    node_free(self->arguments);
    node_free(self->keywords);
    node_free(self->output);
    PyMem_Free(self->open);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static Node *root_node(const char *slot) {
    PyObject *text = PyUnicode_FromString(slot), *empty = PyUnicode_FromString("");
    Node *node = text && empty ? node_new(NULL, text, empty) : NULL;
    Py_XDECREF(text);
    Py_XDECREF(empty);
    return node;
}

static int tap_init(Tap *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"source", "params", "intake", NULL};
    PyObject *source, *params, *intake;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!O!", names, &PyTuple_Type, &source,
                                     &PyTuple_Type, &params, &Intake_Type, &intake))
        return -1;
    Py_XSETREF(self->source, Py_NewRef(source));
    Py_XSETREF(self->params, Py_NewRef(params));
    Py_XSETREF(self->intake, (Intake *)Py_NewRef(intake));
    self->stamp = -1;
    if (self->output == NULL) {
        self->arguments = root_node("input");
        self->keywords = root_node("input");
        self->output = root_node("output");
    }
    return self->arguments && self->keywords && self->output ? 0 : -1;
}

/* Hands a value to Python, which knows all the rest. */
static int take_slowly(Tap *self, Node *node, const Open *call, PyObject *value) {
    PyObject *place = Py_BuildValue("(nn)", call->number, call->index);
    if (place == NULL)
        return -1;
    PyObject *args[] = {self->source, node->slot, node->param, place, value};
    PyObject *result = PyObject_Vectorcall(self->intake->take, args, 5, NULL);
    Py_DECREF(place);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static int count_value(Intake *intake, PyObject *value) {
    PyObject *type = (PyObject *)Py_TYPE(value);
    PyObject *seen = PyDict_GetItemWithError(intake->not_tensors, type);
    if (seen == NULL && PyErr_Occurred())
        return -1;
    PyObject *more = PyLong_FromSsize_t(seen == NULL ? 1 : PyLong_AsSsize_t(seen) + 1);
    int result = more == NULL ? -1 : PyDict_SetItem(intake->not_tensors, type, more);
    Py_XDECREF(more);
    return result;
}

static int is_contiguous(const DLTensor *seen) {
    int64_t expected = 1;
    if (seen->strides == NULL)
        return 1;
    for (int32_t i = seen->ndim - 1; i >= 0; i--) {
        if (seen->shape[i] == 1)
            continue;
        if (seen->strides[i] != expected)
            return 0;
        expected *= seen->shape[i];
    }
    return 1;
}

/* Finds or makes what is known of such a tensor; NULL without an exception: nothing can be. */
static Variant *variant_of(Tap *self, Node *node, const DLTensor *seen, PyObject *tensor) {
    uint32_t dtype;
    size_t bytes = seen->ndim * sizeof(int64_t);
    memcpy(&dtype, &seen->dtype, sizeof dtype);
    for (int i = 0; i < node->known; i++) {
        Variant *known = &node->variants[i];
        if (known->epoch == self->intake->epoch && known->dtype == dtype &&
            known->ndim == seen->ndim && memcmp(known->shape, seen->shape, bytes) == 0)
            return known;
    }
    Variant fresh = {NULL, self->intake->epoch, 0, {0}, dtype, seen->ndim};
    memcpy(fresh.shape, seen->shape, bytes);
    PyObject *args[] = {self->source, node->slot, node->param, tensor};
    fresh.what = PyObject_Vectorcall(self->intake->describe, args, 4, NULL);
    if (fresh.what == NULL || fresh.what == Py_None) {
        Py_CLEAR(fresh.what);
        return NULL;
    }
    PyObject *nbytes = PyObject_GetAttrString(fresh.what, "nbytes");
    fresh.nbytes = nbytes == NULL ? -1 : PyLong_AsSsize_t(nbytes);
    Py_XDECREF(nbytes);
    if (fresh.nbytes < 0) {
        Py_DECREF(fresh.what);
        return NULL;
    }
    if (node->known < VARIANTS)
        node->next = node->known++;
    else
        node->next = (node->next + 1) % VARIANTS;
    Variant *place = &node->variants[node->next];
    PyObject *old = place->what;
    *place = fresh;
    Py_XDECREF(old);
    return place;
}

static int call_with(PyObject *function, Py_ssize_t number) {
    PyObject *argument = PyLong_FromSsize_t(number);
    PyObject *result = argument == NULL ? NULL : PyObject_CallOneArg(function, argument);
    Py_XDECREF(argument);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static int note_row(Intake *intake, PyObject *what, const Open *call, Py_ssize_t offset) {
    PyObject *row = PyTuple_New(5);
    if (row == NULL)
        return -1;
    PyTuple_SET_ITEM(row, 0, Py_NewRef(what));
    PyTuple_SET_ITEM(row, 1, PyLong_FromSsize_t(call->number));
    PyTuple_SET_ITEM(row, 2, PyLong_FromSsize_t(call->index));
    PyTuple_SET_ITEM(row, 3, PyLong_FromSsize_t(offset));
    PyTuple_SET_ITEM(row, 4, Py_NewRef(Py_None));
    int result = PyErr_Occurred() ? -1 : PyList_Append(intake->rows, row);
    Py_DECREF(row);
    if (result == 0 && PyList_GET_SIZE(intake->rows) >= intake->batch) {
        PyObject *pushed = PyObject_CallNoArgs(intake->push);
        result = pushed == NULL ? -1 : 0;
        Py_XDECREF(pushed);
    }
    return result;
}

/* Hands a tensor that is plain but large to Python, which may find that no copy is needed. */
static int take_large(Intake *intake, PyObject *what, const Open *call, PyObject *tensor) {
    PyObject *number = PyLong_FromSsize_t(call->number), *index = PyLong_FromSsize_t(call->index);
    PyObject *args[] = {Py_NewRef(what), number, index, tensor}, *result = NULL;
    if (number != NULL && index != NULL)
        result = PyObject_Vectorcall(intake->take_large, args, 4, NULL);
    Py_DECREF(what);
    Py_XDECREF(number);
    Py_XDECREF(index);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* Copies a tensor: 1 when done, 0 when it is not the common case, -1 with an exception. */
static int take_tensor(Tap *self, Node *node, const Open *call, PyObject *tensor) {
    Intake *intake = self->intake;
    DLTensor seen;
    if (exchange->look(tensor, &seen) != 0) { /* sparse, quantised, meta and the like */
        PyErr_Clear();
        return 0;
    }
    if (seen.device.type != DL_CPU || seen.dtype.lanes != 1 || seen.dtype.code == DL_COMPLEX ||
        seen.data == NULL || seen.ndim > MOST_DIMENSIONS || !is_contiguous(&seen))
        return 0;
    PyObject *negative = PyObject_CallOneArg(is_neg, tensor);
    if (negative == NULL)
        return -1;
    Py_DECREF(negative);
    if (negative != Py_False)
        return 0;
    Variant *known = variant_of(self, node, &seen, tensor);
    if (known == NULL)
        return PyErr_Occurred() ? -1 : 0;
    Py_ssize_t nbytes = known->nbytes;
    if (nbytes >= intake->large)
        return take_large(intake, known->what, call, tensor) < 0 ? -1 : 1;
    PyObject *what = Py_NewRef(known->what); /* making room runs Python, which may forget it */
    if ((intake->size == 0 || intake->used + nbytes > intake->size) &&
        call_with(intake->make_room, nbytes) < 0) {
        Py_DECREF(what);
        return -1;
    }
    Py_ssize_t offset = intake->used;
    memcpy((char *)intake->address + offset, (char *)seen.data + seen.byte_offset, nbytes);
    intake->used += nbytes;
    int noted = note_row(intake, what, call, offset);
    Py_DECREF(what);
    return noted < 0 ? -1 : 1;
}

static int take(Tap *self, Node *node, const Open *call, PyObject *value, int depth) {
    PyTypeObject *type = Py_TYPE(value);
    if (type == tensor_type || type == parameter_type) {
        int done = self->intake->check_device ? 0 : take_tensor(self, node, call, value);
        return done ? (done < 0 ? -1 : 0) : take_slowly(self, node, call, value);
    }
    int is_plain = PySet_Contains(self->intake->plain, (PyObject *)type);
    if (is_plain)
        return is_plain < 0 ? -1 : count_value(self->intake, value);
    int is_tuple = type == &PyTuple_Type, is_list = type == &PyList_Type;
    if ((!is_tuple && !is_list) || depth >= MOST_DEPTH || Py_SIZE(value) > MOST_NODES)
        return take_slowly(self, node, call, value);
    for (Py_ssize_t i = 0; i < Py_SIZE(value); i++) {
        Node *item = node_item(node, i);
        PyObject *part = is_tuple ? PyTuple_GET_ITEM(value, i) : PyList_GET_ITEM(value, i);
        Py_INCREF(part);
        int result = item == NULL ? -1 : take(self, item, call, part, depth + 1);
        Py_DECREF(part);
        if (result < 0)
            return -1;
    }
    return 0;
}

static int take_inputs(Tap *self, const Open *call, PyObject *args, PyObject *kwargs) {
    PyObject *name, *value;
    Py_ssize_t place = 0, hint = 0;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(args); i++) {
        Node *node = NULL;
        if (i < self->arguments->count) {
            node = self->arguments->items[i];
        } else {
            PyObject *key = PyLong_FromSsize_t(i);
            PyObject *param = i < PyTuple_GET_SIZE(self->params)
                                  ? PyTuple_GET_ITEM(self->params, i)
                                  : self->arguments->param;
            node = key == NULL ? NULL : node_add(self->arguments, key, param);
            Py_XDECREF(key);
        }
        if (node == NULL || take(self, node, call, PyTuple_GET_ITEM(args, i), 0) < 0)
            return -1;
    }
    while (PyDict_Next(kwargs, &place, &name, &value)) {
        Node *node = node_named(self->keywords, name, hint++);
        if (node == NULL)
            return -1;
        Py_INCREF(value);
        int result = take(self, node, call, value, 0);
        Py_DECREF(value);
        if (result < 0)
            return -1;
    }
    return 0;
}

static int enter(Tap *self, PyObject *args, PyObject *kwargs) {
    Intake *intake = self->intake;
    if (self->stamp != intake->stamp) {
        self->stamp = intake->stamp;
        self->calls = self->opened = 0;
    }
    if (self->opened == self->room) {
        Py_ssize_t room = self->room ? 2 * self->room : 4;
        Open *grown = PyMem_Realloc(self->open, room * sizeof(Open));
        if (grown == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        self->open = grown;
        self->room = room;
    }
    Open call = {self->calls++, PyList_GET_SIZE(intake->calls) / 2, intake->stamp};
    PyObject *order = PyLong_FromSsize_t(intake->sequence++), *none = PyLong_FromLong(-1);
    int failed = order == NULL || none == NULL || PyList_Append(intake->calls, order) < 0 ||
                 PyList_Append(intake->calls, none) < 0;
    Py_XDECREF(order);
    Py_XDECREF(none);
    if (failed)
        return -1;
    self->open[self->opened++] = call;
    return intake->inputs ? take_inputs(self, &call, args, kwargs) : 0;
}

static int leave(Tap *self, PyObject *output) {
    Intake *intake = self->intake;
    Open call = self->open[--self->opened];
    if (call.stamp != intake->stamp)
        return 0;
    if (intake->outputs && take(self, self->output, &call, output, 0) < 0)
        return -1;
    PyObject *order = PyLong_FromSsize_t(intake->sequence++);
    return order == NULL ? -1 : PyList_SetItem(intake->calls, 2 * call.index + 1, order);
}

/* Whether a Snapshot has given its functions; a hook must never call NULL. */
static int is_connected(const Intake *intake) {
    return intake->calls && intake->rows && intake->not_tensors && intake->plain &&
           intake->describe && intake->make_room && intake->push && intake->take &&
           intake->take_large && intake->fail;
}

/* Whatever we did wrong, the model must go on; what is no Exception is not ours to keep. */
static PyObject *finish(Tap *self, int result) {
    if (result < 0) {
        if (!PyErr_ExceptionMatches(PyExc_Exception))
            return NULL;
        PyObject *type, *error, *trace;
        PyErr_Fetch(&type, &error, &trace);
        PyErr_NormalizeException(&type, &error, &trace);
        if (trace != NULL)
            PyException_SetTraceback(error, trace);
        PyObject *told = PyObject_CallOneArg(self->intake->fail, error);
        Py_XDECREF(type);
        Py_XDECREF(error);
        Py_XDECREF(trace);
        if (told == NULL)
            return NULL;
        Py_DECREF(told);
    }
    Py_RETURN_NONE;
}

static PyObject *tap_before(Tap *self, PyObject *const *args, Py_ssize_t count) {
    if (self->intake == NULL || !self->intake->recording)
        Py_RETURN_NONE;
    if (count != 3 || !PyTuple_Check(args[1]) || !PyDict_Check(args[2]) ||
        !is_connected(self->intake)) {
        PyErr_SetString(PyExc_TypeError, "before() takes (module, args, kwargs) when connected");
        return NULL;
    }
    return finish(self, enter(self, args[1], args[2]));
}

static PyObject *tap_after(Tap *self, PyObject *const *args, Py_ssize_t count) {
    if (self->intake == NULL || !self->intake->recording || self->opened == 0)
        Py_RETURN_NONE;
    if (count != 3 || !is_connected(self->intake)) {
        PyErr_SetString(PyExc_TypeError, "after() takes (module, args, output) when connected");
        return NULL;
    }
    return finish(self, leave(self, args[2]));
}

static PyMethodDef tap_methods[] = {
    {"before", (PyCFunction)(void (*)(void))tap_before, METH_FASTCALL,
     "Record the inputs; a forward pre-hook with keyword arguments."},
    {"after", (PyCFunction)(void (*)(void))tap_after, METH_FASTCALL,
     "Record the outputs; a forward hook."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject Tap_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "hf_dumper.capture._hooks.Tap",
    .tp_basicsize = sizeof(Tap),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)tap_init,
    .tp_dealloc = (destructor)tap_dealloc,
    .tp_traverse = (traverseproc)tap_traverse,
    .tp_clear = (inquiry)tap_clear,
    .tp_methods = tap_methods,
};

/* --- the module ------------------------------------------------------------------------------- */

static PyObject *bind(PyObject *module, PyObject *args) {
    PyObject *tensor, *parameter;
    if (!PyArg_ParseTuple(args, "O!O!", &PyType_Type, &tensor, &PyType_Type, &parameter))
        return NULL;
    PyObject *capsule = PyObject_GetAttrString(tensor, "__dlpack_c_exchange_api__");
    if (capsule == NULL)
        return NULL;
    const ExchangeTable *table = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
    Py_DECREF(capsule); /* the table itself is static */
    if (table == NULL)
        return NULL;
    if (table->version.major != DL_MAJOR || table->look == NULL) {
        PyErr_SetString(PyExc_ImportError, "no DLPack 1.x table that looks at tensors");
        return NULL;
    }
    Py_XSETREF(is_neg, PyObject_GetAttrString(tensor, "is_neg"));
    if (is_neg == NULL)
        return NULL;
    exchange = table;
    Py_XSETREF(tensor_type, (PyTypeObject *)Py_NewRef(tensor));
    Py_XSETREF(parameter_type, (PyTypeObject *)Py_NewRef(parameter));
    Py_RETURN_NONE;
}

/* A large copy is not read again soon: written past the caches, it leaves the model's data in them
 * and takes two thirds of the time, as the old bytes of the destination need not be fetched. */
static void copy_past_caches(char *to, const char *from, size_t n) {
#ifdef __SSE2__
    size_t head = -(uintptr_t)to & 63;
    if (n < head + 64) {
        memcpy(to, from, n);
        return;
    }
    memcpy(to, from, head);
    size_t i = head;
    for (; i + 64 <= n; i += 64) {
        __m128i a = _mm_loadu_si128((const __m128i *)(from + i));
        __m128i b = _mm_loadu_si128((const __m128i *)(from + i + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(from + i + 32));
        __m128i d = _mm_loadu_si128((const __m128i *)(from + i + 48));
        _mm_stream_si128((__m128i *)(to + i), a);
        _mm_stream_si128((__m128i *)(to + i + 16), b);
        _mm_stream_si128((__m128i *)(to + i + 32), c);
        _mm_stream_si128((__m128i *)(to + i + 48), d);
    }
    _mm_sfence();
    memcpy(to + i, from + i, n - i);
#else
    memcpy(to, from, n);
#endif
}

/* To hand the interpreter over takes longer than to copy so little. */
enum { WORTH_A_HANDOVER = 1 << 20 };

static PyObject *copy_large(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "copy_large() takes (to, from, number)");
        return NULL;
    }
    char *to = PyLong_AsVoidPtr(args[0]), *from = PyLong_AsVoidPtr(args[1]);
    size_t n = PyLong_AsSize_t(args[2]);
    if (PyErr_Occurred())
        return NULL;
    if (n < WORTH_A_HANDOVER) {
        copy_past_caches(to, from, n);
    } else {
        Py_BEGIN_ALLOW_THREADS
        copy_past_caches(to, from, n);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"copy_large", (PyCFunction)(void (*)(void))copy_large, METH_FASTCALL,
     "Copy bytes: (to, from, number), all of them integers."},
    {"bind", bind, METH_VARARGS, "Look at tensors of these two classes from now on."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_hooks", "The hooks of taps, compiled.", -1, functions,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__hooks(void) {
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL || PyModule_AddType(module, &Intake_Type) < 0 ||
        PyModule_AddType(module, &Tap_Type) < 0) {
        Py_XDECREF(module);
        return NULL;
    }
    return module;
}
