-- Last of all: the worker may come.
select helper._start_worker();
