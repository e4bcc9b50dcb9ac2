-- KEYS: the topic's members. ARGV: channel, node, member; without the last all members of the node leave.
local members = {}
if ARGV[3] then
	members = {ARGV[3], redis.call('HGET', KEYS[1], ARGV[3]) or ''}
else
	members = redis.call('HGETALL', KEYS[1])
end
for i = 1, #members, 2 do
	if string.sub(members[i + 1], 1, #ARGV[2]) == ARGV[2] then
		redis.call('HDEL', KEYS[1], members[i])
		-- As encodeMember does.
		local info = string.sub(members[i + 1], #ARGV[2] + 1)
		redis.call('PUBLISH', ARGV[1], '-' .. #members[i] .. '\n' .. members[i] .. info)
	end
end
return 0
