-- Which life of the server this is: another one after a restart, and after a replica has become the master. What was written in
-- one may be missing in the next. The shorter one goes into messages.
local info = redis.call('INFO', 'server', 'replication')
local run = string.match(info, 'run_id:(%x+)')
local life = run .. string.match(info, 'master_replid:(%x+)')
run = string.sub(run, 1, 8)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function int(n) return string.format('%.0f', n) end
