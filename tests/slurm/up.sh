#!/usr/bin/env bash
# A real SLURM of one node on this machine, as root and without systemd (Debian packages; tried with 22.05).
# It pretends to two GPUs, so that what the scripts ask for can be had. Runs twice without harm.
set -euo pipefail

command -v slurmctld munged >/dev/null || {
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge
}
node="$(hostname -s)"
install -d -o munge -g munge -m 0755 /run/munge
pgrep -x munged >/dev/null || setpriv --reuid=munge --regid=munge --init-groups /usr/sbin/munged
install -d /var/spool/slurmctld /var/spool/slurmd /var/log/slurm /run/slurm
for device in 0 1; do [ -e "/run/slurm/gpu$device" ] || mknod "/run/slurm/gpu$device" c 1 3; done
echo "Name=gpu File=/run/slurm/gpu[0-1]" >/etc/slurm/gres.conf
cat >/etc/slurm/slurm.conf <<CONF
ClusterName=effvl
SlurmctldHost=$node
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=6
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
ReturnToService=2
MpiDefault=none
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmdPidFile=/run/slurm/slurmd.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
$(slurmd -C | head -1) Gres=gpu:2 State=UNKNOWN
PartitionName=test Nodes=$node Default=YES MaxTime=INFINITE State=UP
CONF
pgrep -x slurmctld >/dev/null || slurmctld
pgrep -x slurmd >/dev/null || slurmd
for _ in $(seq 30); do
    [ "$(sinfo -h -o %t)" = idle ] && break
    sleep 1
done
sinfo
