# The lab: tests in emulated machines with hardware-style KVM (docs/lab.md).
#
#   make lab                      everything that states a need of the machine, on emulated SVM, with -short
#   make lab RUN=TestProbe        only what matches, line by line
#   make lab BACKEND=vmx          on emulated VT-x, the core set; all: LAB_PACKAGES=./...
#   make lab-tear                 the test of patching, 100,000 patches
#   make lab-ci                   what CI runs
#   make lab BACKEND=svm-shadow   another machine of lab/machine.go
#   make lab LABFLAGS='-append foo=1 -kernel linux-image-amd64'
#
# The lab is the last command of its recipe, so that make (or the shell, which
# execs it) is its parent: it asks the kernel to be told when that dies.

BACKEND ?= svm
RUN     ?=
LABFLAGS ?=
# Emulated VT-x is an order of magnitude slower than emulated SVM: there, these packages, and of two of them the tests named; TestMillionKicks waits 12 000 times
# for a slice of the one CPU.
# Not empty: the packages were chosen by hand, and none of their tests are left out.
LAB_GIVEN    := $(filter-out undefined,$(origin LAB_PACKAGES) $(origin LAB_CORE))
LAB_CORE     ?= ./lab ./internal/testenv ./internal/kvm ./guest/mem ./vcpu ./vmm ./patch/running ./cmd/cloister
LAB_TEAR     := -only './patch/running=$(TEAR)'
LAB_TABLES   := -only './cmd/cloister=TestEveryCauseIsCounted|TestEveryFaultIsReported'
LAB_CORE_ONLY := $(LAB_TABLES) $(LAB_TEAR) -skip TestMillionKicks
LAB_PACKAGES ?= $(if $(filter vmx%,$(BACKEND)),$(LAB_CORE),./...)
LAB_ONLY     ?= $(if $(and $(filter vmx%,$(BACKEND)),$(if $(RUN)$(LAB_GIVEN),,all)),$(LAB_CORE_ONLY))
LAB_JSON = build/lane-lab$(if $(filter svm,$(BACKEND)),,-$(BACKEND)).json

# What CI runs (docs/lab.md, "What CI runs"). Each machine may take so many seconds, whatever it does.
LAB_SECONDS     ?= 900
LAB_VMX_SECONDS ?= 1200
# What wants CPUs that run at the same time.
LAB_PARALLEL_ONLY := -only './bench=^TestRingCallAgainstC$$' -only './patch/running=^TestHog$$'

.PHONY: lab lab-tear lab-ci lab-ci-svm lab-ci-svm-parallel lab-ci-svm-plain lab-ci-tear lab-ci-kernel lab-vmx-ci lab-shell lab-vmx lab-scenarios lab-bad build/lab

lab: build/lab ## run the tests in an emulated machine with hardware-style KVM (BACKEND=svm|vmx, RUN=regexp)
	@exec build/lab -machine $(BACKEND) -json $(LAB_JSON) -out build/lab-out/$(BACKEND) -timeout 60m $(if $(RUN),-v -run '$(value RUN)') $(if $(and $(RUN),$(filter-out vmx%,$(BACKEND))),,-short) $(LAB_ONLY) $(LABFLAGS) $(LAB_PACKAGES)

# One machine of CI: $(call lab_one,MACHINE,SECONDS). What this machine cannot have is "not run" in the table, and a failure where CI_LAB says that it
# must be there. Each recipe is one command, which make execs: the lab then dies with make.
lab_one = exec build/lab -machine $(1) -json build/lane-lab-$(1).json -out build/lab-out/$(1) -short -timeout $(2)s -within $(2)s $(if $(CI_LAB),,-optional)

# One machine after the other: two emulators would share the CPUs and both be late. `make -k lab-ci` runs the second though the first has failed.
lab-ci: lab-ci-svm lab-ci-svm-parallel lab-ci-svm-plain lab-ci-tear lab-script-two-cpus ## what CI runs on emulated SVM, in at most LAB_SECONDS for each of its machines

lab-ci-svm: build/lab
	@$(call lab_one,svm,$(LAB_SECONDS)) $(LAB_TABLES) $(LAB_TEAR) ./lab ./internal/testenv ./internal/kvm ./guest/mem ./patch/running ./cmd/cloister

lab-ci-svm-parallel: build/lab
	@$(call lab_one,svm-parallel,$(LAB_SECONDS)) $(LAB_PARALLEL_ONLY) ./vcpu ./vmm ./bench ./patch/running

lab-ci-svm-plain: build/lab
	@$(call lab_one,svm-plain,$(LAB_SECONDS)) -only './lab=^(TestProbe|TestScenarios)$$/^(partition)?$$' ./lab

# 100,000 patches, and nothing else: a machine of its own, so that a slow one loses only them.
lab-ci-tear: build/lab
	@exec build/lab -machine svm -row lab-tear -json build/lane-lab-svm-tear.json -out build/lab-out/svm-tear -timeout $(LAB_SECONDS)s -within $(LAB_SECONDS)s $(if $(CI_LAB),,-optional) -run '$(TEAR)' ./patch/running

# A whole kernel as a guest. On VT-x, since under emulated SVM one stops on its way now and then (docs/lab.md).
lab-ci-kernel: build/lab
	@exec build/lab -script lab/testdata/kernel.txtar -machine vmx -row lab-vmx-kernel -json build/lane-lab-vmx-kernel.json -out build/lab-out/vmx-kernel -timeout $(LAB_VMX_SECONDS)s -within $(LAB_VMX_SECONDS)s $(if $(CI_LAB),,-optional)

lab-vmx-ci: build/lab ## what CI runs on emulated VT-x, in at most LAB_VMX_SECONDS
	@$(call lab_one,vmx,$(LAB_VMX_SECONDS)) $(LAB_CORE_ONLY) $(LAB_CORE)

lab-vmx: BACKEND = vmx
lab-vmx: lab ## the same on emulated VT-x, the core set (RUN=regexp)

lab-tear: build/lab ## make tear in an emulated machine (BACKEND=svm|svm-parallel: 100,000 patches; vmx: 1000)
	@exec build/lab -machine $(BACKEND) -timeout 60m -json $(LAB_JSON) -out build/lab-out/$(BACKEND) -v -run '$(TEAR)' $(LABFLAGS) ./patch/running

lab-shell: build/lab ## a shell in an emulated machine (leave with exit; Ctrl-a c is QEMU's monitor)
	@exec build/lab -machine $(BACKEND) -shell $(LABFLAGS)

# Scripts with CPUs or a command line of their own each have a machine to themselves.
LAB_OWN := $(patsubst lab/testdata/%.txtar,lab-script-%,$(shell grep -lE '^\# (cmdline|cpus):' lab/testdata/*.txtar))

lab-scenarios: lab-scenarios-svm lab-scenarios-svm-shadow lab-scenarios-svm-plain $(LAB_OWN) ## the scripts of lab/testdata on each emulated SVM machine

lab-script-%: build/lab # one script, on the machine that it asks for
	@exec build/lab -script lab/testdata/$*.txtar -json build/lane-lab-script-$*.json -out build/lab-out/$* -timeout $(LAB_SECONDS)s -within $(LAB_SECONDS)s $(if $(CI_LAB),,-optional) $(LABFLAGS)

lab-bad: build/lab ## tests that misbehave: each must be ended, and told (by hand: it takes 4 minutes)
	@lab/testdata/bad/run build/lab

lab-scenarios-%: build/lab
	@exec build/lab -machine $* -json build/lane-lab-$*-scenarios.json -out build/lab-out/$* -timeout 60m -v -run TestScenarios $(LABFLAGS) ./lab

build/lab:
	@mkdir -p build
	@CGO_ENABLED=0 go build -o build/lab ./lab/cmd/lab
