module terrace.dev/tests/kubelet

go 1.26
