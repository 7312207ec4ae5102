// The universal codebooks, data only. Made by `npx tsx bench/codebooks.ts`; never edited by hand.
//
//   base64    f16 [256, channels], little-endian; the codeword of code c is row c
//   checksum  FNV-1a, 32 bits, of those bytes; part of the format: coded bytes mean nothing under another codebook
//
// Row c + 128 is the exact negation of row c. Rows 0 to 127 have a positive first channel and ascend.

interface CodebookData {
  readonly checksum: number;
  readonly base64: string;
}

export const codebooks: Readonly<Record<8 | 4 | 2, CodebookData>> = {
  8: {
    checksum: 0x419f5e95,
    base64:
      'JyV1usU5fz4UtjC9BrAQLJklaTI8sieqqzYQsaHADzdgKDE4BL2bubk8Oq6OOM08nykfvWq9QriyOxK7JDO+K0kqALn8u289DqVLPtqsmjPYKss7gDrBPZyx' +
      'F7hiM+087SvftNq3CjvOOpG9OTcgPeAsaj8OL0uxtTNvOlw1vjzqLA496aUIObi4pC7FtQu/2C1apIG9ojAaNeS5F7DjvpQvFj8wveCndDiDK0cyBrgZMfQ7' +
      'd7hcPtwxKL04LWG3SDGIqlJAirpArJc0n7TYtIsxs71IOqK9OjsBuUysLLQEMuGztLhMvc691TkcPFi1ijIPrJy6br1mvK04Sb3fLskyE7vrp+U0vb31ucu9' +
      '5DLuMtW/jbDoJfs6VjsopNSrJTPUN0A7Tb5XPGUxTTWeOzUzw7clveK1x7AluiK7oT1MM/AtdLDBMXYnn7igOe6qhjOXtY4++iwOOmu8hTLIO8wzezfmvJC5' +
      'aLEYv6w0OTjNMwuwfzq4udM09Ld5tjDAADRNuT20sjlhNC88nrY2vwk0OrwJMlM1Ab+AuKA6QLQjNMU+bTrFus43QTWzqJm6OjQ/Nz+4iL2yPe24tTEuuk80' +
      'Wr0NOc60ULSzOiM6QL1TNEmrOyhNt2WzVremtTq4qTRnO14+Bzq6MPK7ELErurE0rbDNrW2ygzz0PsE0ljzXNG06bjOlMGy+UzHiPIo73zQOvGQ55T3QOZs2' +
      'iTDhPPM0hbbBMogyTDy2v8YqEbowNYs8arDyN/U2TT/urPy4jzXWPeI01iQzPUW8xzYrN6g1PjxRNnAwP7wENEi8nj23Nam4Wry5tWq5fbnKPSw8ujU0spO9' +
      'RKuDPbA7/DFxuMs1Yzu2vRs0trrqufe8HrbVNUgvErLAuGm2izTxM6c2/DUJvAm6aT5dPL615SpVuDI2FzqSvPY0EL3UuDs867lINnU1AjlGQKwugThSskO4' +
      'aTauuGU807x7uUm3uTy+OaY2TzMptmU4wrXxLf20dKfxNvE6ULmEPUg9HjbrNtM5PzdWt646G721tTu4lLxUPMw36bwHKIUvmrk3PLs8TDv5N8U5HjwDuCy9' +
      'YrSAOkG8HzgpvJixhylptpo7tbyJPSs4HjvOOuu407tXtv29MLktOGm3h7i7vCQnb71Rvd64NjgWOuw9lji5PCA6IjCZNUA4/7hztWO8O7bDvGQ8P7xCOD09' +
      '2rQovQ6v/bWtPUMxSDhHvLk97zmMOyCvwLNsum44sbxTvfs0MrZNNfo7HrpvOHe8FL7cMh0hYjPrvBC2fTg8LMMnVjpKvQA9aDqguok4kjJwr6s617vAPDW+' +
      '2LaLOIuzcTklu1k94Dw+rd26pzgTuPcx8ihHQP6wgTWeNrM4rLaFOxi4mjwJtk09pLuzOBI4SzXYNA2wW78svKQ45Th6PbK2Ub1mM5a3Hbs1OOY4LjewN7c1' +
      'JbhOv0A9dzPsOOo4Bb0kMCawoDx/PYU2+Tj8OcC9mSlPMw08g7usOhk56jnqLiw5Rz7tq3ugSb0fOZKrvrnzPryv67RkvCM7Mzk1tNu38j4yuNyvKD3aNvk5' +
      'U7srPDo1HbUEP12z9DYHOqu8GDnLuIWpOTgevoC5GDpxsek9cDows+UmWb2OOBk62bgkuSm9ZDySNl67eDhVOsa93y12NII5yboYvLs4XDqfOH87qbmJs7g9' +
      'aTwIL2Q6NrSdPto6j7gfMFs7EDCAOlm+ATXVNZA1DLr1PDcxgjo9uh239LyUOSY4fT1hMIM6rTK5q7G8gb59vM8zvymIOhs4Crl4t+O9iLoeuUs8nDrROS06' +
      'YLonMF49tLwHOMY6KTY/M1owjTubrH25NT/OOsexQyyYO4ksHbr0vce81zpaOWW53ri0N5c4Or2qvOQ6qjNjN/kwmTiKKFo+cT3pOgU4F7eruIItGDkJPFO+' +
      'BjtPtUq9+jZovhE4cqidOAc757TzNCY85bINudw6Xr5FO/A+uzJ+Ovg14Cg+vKwqTTucNbK8LTQUPeS6Z7pGLYM7HD5KNeQ68KnoMMM8HbbWO9YzPLzrNMk7' +
      'QLr/PYG1ADyZtNs6l7YHvyc5N7ZgNTE8pL6mt927m7msshyv3TQ6PBc1hzuFuOU8tbhcvIqyVjwHuVI2pTevuny5hy88PoQ81LbcMZY6ljo4PGY81baQPBK2' +
      'G7hCtHS9oqimt9K9kjzWtAQgJDq5PHw7r7zDJp88AjE8thq9oLdeORc0aj6xPFc5Dja6PO69jLj5symxtTz6LjO/BrwisIiwaDCassA85j03tx63e7wCOmOv' +
      '1bPXPLS5CbzMOF645b24p3OxGz2SPHK7lzdGs/u4ojYvPDU9MLxoPHq6+7iSNos4P7k1PWwxizW4v2axki9FsUK4Pz1fPLw8SbbDtr+2xQ8ZOkw92bmiPMix' +
      'I7g0vau0hbZkPS+4EbnAt4S0pT5vsZi1gT1qvXYwgjy8uIA1SbQQtJQ9M7M4sA+8BTnlvMk0VzqvPVc5uzw0uDU5+rcTPG62tT3Wule8BTcxOCk0hjTHO8s9' +
      'zDdSMrY74bWLPBIsATzkPWw8IrRJtB+kobxPq6m7Jz5mN7S8kTxgH1A256psuj4+obrlO0O3xDhmNlkmKjp2Pow2qDv0M6OubTkHthe8oT40u7u1IrSEOnmz' +
      'PKsbvMg+WzvBtPu2PzylOAI0BjLkPvcsxzeKPJ05BbpULX0y3j+TJbm0UrFGtcmv57wCNv0/Yq+0r5Gt17kUpFs8cqgnpXU6xbl/vhQ2MD0GMBCsmaVpsjwy' +
      'JyqrthAxoUAPt2CoMbgEPZs5ubw6Lo64zbyfqR89aj1COLK7Ejsks76rSaoAOfw7b70OJUu+2iyas9iqy7uAusG9nDEXOGKz7bztq9802jcKu866kT05tyC9' +
      '4Kxqvw6vSzG1s2+6XLW+vOqsDr3pJQi5uDikrsU1Cz/YrVokgT2isBq15DkXMOM+lK8WvzA94Cd0uIOrR7IGOBmx9Lt3OFy+3LEoPTitYTdIsYgqUsCKOkAs' +
      'l7SfNNg0i7GzPUi6oj06uwE5TCwsNASy4TO0OEw9zj3VuRy8WDWKsg8snDpuPWY8rbhJPd+uybITO+sn5bS9PfU5yz3ksu6y1T+NMOil+7pWuygk1Csls9S3' +
      'QLtNPle8ZbFNtZ67NbPDNyU94jXHMCU6IjuhvUyz8K10MMGxdqefOKC57iqGs5c1jr76rA66azyFssi7zLN7t+Y8kDloMRg/rLQ5uM2zCzB/urg507T0N3k2' +
      'MEAAtE05PTSyuWG0L7yeNjY/CbQ6PAmyU7UBP4A4oLpANCO0xb5tusU6zrdBtbMomTo6tD+3PziIPbK97Ti1sS46T7RaPQ25zjRQNLO6I7pAPVO0SSs7qE03' +
      'ZTNWN6Y1OjiptGe7Xr4Hurqw8jsQMSs6sbStMM0tbTKDvPS+wbSWvNe0bbpus6WwbD5TseK8irvftA48ZLnlvdC5m7aJsOG887SFNsGyiLJMvLY/xqoROjC1' +
      'i7xqMPK39bZNv+4s/DiPtda94rTWpDO9RTzHtiu3qLU+vFG2cLA/PAS0SDyevbe1qThaPLk1ajl9Ocq9LLy6tTQykz1EK4O9sLv8sXE4y7Vju7Y9G7S2Ouo5' +
      '9zweNtW1SK8SMsA4aTaLtPGzp7b8tQk8CTppvl28vjXlqlU4MrYXupI89rQQPdQ4O7zrOUi2dbUCuUbArK6BuFIyQzhptq44ZbzTPHs5STe5vL65prZPsyk2' +
      'ZbjCNfGt/TR0J/G28bpQOYS9SL0etuu207k/t1Y3rrobPbU1OziUPFS8zLfpPAeoha+aOTe8u7xMu/m3xbkevAM4LD1iNIC6QTwfuCk8mDGHqWk2mru1PIm9' +
      'K7geu8666zjTO1c2/T0wOS24aTeHOLs8JKdvPVE93jg2uBa67L2WuLm8ILoisJm1QLj/OHM1Yzw7NsM8ZLw/PEK4Pb3aNCg9Di/9Na29Q7FIuEc8ub3vuYy7' +
      'IC/AM2w6brixPFM9+7QyNk21+rseOm+4dzwUPtyyHaFis+s8EDZ9uDysw6dWuko9AL1ouqA6ibiSsnAvq7rXO8C8NT7YNou4izNxuSU7Wb3gvD4t3TqnuBM4' +
      '97HyqEfA/jCBtZ62s7isNoW7GDiavAk2Tb2kO7O4ErhLtdi0DTBbPyw8pLjluHq9sjZRPWazljcdOzW45rgut7C3t7UlOE4/QL13s+y46rgFPSSwJjCgvH+9' +
      'hbb5uPy5wD2ZqU+zDbyDO6y6GbnquequLLlHvu0reyBJPR+5kiu+OfO+vC/rNGQ8I7szuTU02zfyvjI43C8ovdq2+blTOyu8OrUdNQS/XTP0tge6qzwYucs4' +
      'hSk5uB4+gDkYunEx6b1wujAz5aZZPY64GbrZOCQ5KT1kvJK2Xjt4uFW6xj3frXa0grnJOhg8u7hcup+4f7upOYkzuL1pvAivZLo2NJ2+2rqPOB+wW7sQsIC6' +
      'WT4BtdW1kLUMOvW8N7GCuj06HTf0PJS5Jrh9vWGwg7qtsrkrsTyBPn08z7O/qYi6G7gKOXg34z2IOh45S7ycutG5LbpgOiewXr20PAe4xroptj+zWrCNu5ss' +
      'fTk1v866xzFDrJi7iawdOvQ9xzzXulq5ZTneOLS3l7g6Pao85Lqqs2O3+bCZuIqoWr5xvem6BbgXN6s4gq0YuQm8Uz4Gu081Sj36tmg+EbhyKJ24B7vnNPO0' +
      'JrzlMg053LpePkW78L67sn66+LXgqD48rKpNu5y1sjwttBS95DpnOkatg7scvkq15LrwKeiww7wdNta71rM8POu0ybtAOv+9gTUAvJk027qXNgc/J7k3NmC1' +
      'MbykPqY33TubOawyHC/dtDq8F7WHu4U45by1OFw8ijJWvAc5Uralt686fDmHrzy+hLzUNtyxlrqWuji8ZrzVNpC8EjYbOEI0dD2iKKY30j2SvNY0BKAkurm8' +
      'fLuvPMOmn7wCsTw2Gj2gN165F7RqvrG8V7kOtrq87j2MOPkzKTG1vPquMz8GPCIwiDBosJoywLzmvTc3Hjd7PAK6Yy/VM9e8tDkJPMy4XjjlPbgnczEbvZK8' +
      'cjuXt0Yz+ziiti+8Nb0wPGi8ejr7OJK2i7g/OTW9bLGLtbg/ZjGSr0UxQjg/vV+8vLxJNsM2vzbFjxm6TL3ZOaK8yDEjODQ9qzSFNmS9LzgROcA3hDSlvm8x' +
      'mDWBvWo9drCCvLw4gLVJNBA0lL0zMzgwDzwFueU8ybRXuq+9V7m7vDQ4Nbn6NxO8bja1vdY6VzwFtzG4KbSGtMe7y73Mt1KytrvhNYu8EqwBvOS9bLwiNEk0' +
      'HyShPE8rqTsnvma3tDyRvGCfULbnKmw6Pr6hOuW7QzfEuGa2WaYquna+jLaou/Szoy5tuQc2FzyhvjQ7uzUiNIS6eTM8Kxs8yL5bu8E0+zY/vKW4ArQGsuS+' +
      '96zHt4q8nbkFOlStfbLev5OluTRSMUY1yS/nPAK2/b9iL7QvkS3XORQkW7xyKA==',
  },
  4: {
    checksum: 0x1438f011,
    base64:
      'xBh8NEw77D22GaA2O7gWOK8c9D1VvkW9gyA0thi6JjMNKMy8dzQhPBAoFDs8KAIoKCjtuNSupT8MKz4wU76PLg8r7zlIO7K8rCuKPVe6qbAeLGQ5wcAnOl4s' +
      '9LwNv0K86SyBsPI8LLyoLvw8EjsXNbUu2z7HPl26LzCavBW31rwjMWs31cCBuYExHcH/OJQe/DLoOQZBOiMmMzKzzTTJvZ8z17ZFtgO5EjTYMcW8eUAmNDQ2' +
      'XLm8tEA0lDYPLvW5VzSrsx83ADyENOe+VK9arPE0grw9N2m79zQTQH+8sTwNNVm5FD1BOhQ1Rz3XszdATDUBnxUpDTByNbE2CT00Oes19bDDtQ3BdzYzvN09' +
      'Wr6ENhc8/7xJOAA3aj0XOM+4dTd5voc/AyaiN0nAZLfzOxA4X7rKvSU0Izj9PdOyCzlUOOu8dbwaQGk4kzgnNNU5bDgSOPi5Fb1yOCw8jzxzQIc4SjqRPSi0' +
      'ijinuoI8+7SPOOWtvTpjMZs4LbKpta86pzhDQKK4A7yoOGC0R70huak4i7y5uEE4uTiDLSm/9b69OFbAIL08tM44Mro7NZs11Th4QNI4hjzrOMc59bj+PFg5' +
      'o7hPPBRAWTmVPvw49L53OT7AP6/PvHs5Sr9lN34/iTl7tyjAnzyrOfkzVTGpPsQ5ujl9veW29DkJOA1AM70QOrxASjketC06xziHNvyxQDq6PPu4PsBBOoGz' +
      'bjRbuEc6qrZDuN6qXzorMKC8ZjfdOsg8OLYFuAE7M7sSrGI9Czsxspw/4SsPO0E5/LY5NBU7cTLmPxo9OzvytgW26rxCO+w+Jr8RrYM7IzwIOrs8ujtFvvE5' +
      '4zjAOy+85DUmwMA7XTFAPMO5zTvHvH28Pb/pO4K85i/ptfA7yTjSM+G89zugvN26I7glPB41pTsswCY8ybSWuzQ9cDwhPsE+fzd7PDC/DDyquYM8Tz05NhIz' +
      'nTwQtdY5DzykPA68VcBytak8kDRKuKm4tjyZuKc5qLzCPBeo+i0hNOY8+jpsvnM9RT1oN/E7xzZ0PUBAgrgAM5k97qy4tKlAmj1hNELA1i6vPYq9J71YO749' +
      'JLgkO+6jxj0TupQ/H7vYPTLAzrEbMOI9FT3BPHi66z2kuj2yBTgTPqw15LCSOyk+F7zAPgE7Mj5pPGu9Zrw3Ptuy97vLMGQ+lT2ktNU9oT6Rs5i9D7yzPnM4' +
      'CzTEtLo+hjDMtUC/xz7rO1a7AzTYPoG2Mq45uDY/3D2aqQ+8hj8UvRuxGr2fP6g1nztcPus/rbxDMpg98j+3NQ0/DaRtQAS98jk3sXBAAS1eOpS8g0CXvIy7' +
      '86+HQGqiF7xsPIhAQz0TOIU2ykD7r+k1jTcYQV82JLlwt8SYfLRMu+y9tpmgtjs4FrivnPS9VT5FPYOgNDYYOiazDajMPHe0IbwQqBS7PKgCqCio7TjULqW/' +
      'DKs+sFM+j64Pq++5SLuyPKyrir1XOqkwHqxkucFAJ7perPQ8DT9CPOmsgTDyvCw8qK78vBK7F7W1rtu+x75dOi+wmjwVN9Y8I7Frt9VAgTmBsR1B/7iUnvyy' +
      '6LkGwTqjJrMyM820yT2fs9c2RTYDORK02LHFPHnAJrQ0tlw5vDRAtJS2D671OVe0qzMftwC8hLTnPlQvWizxtII8PbdpO/e0E8B/PLG8DbVZORS9QboUtUe9' +
      '1zM3wEy1AR8VqQ2wcrWxtgm9NLnrtfUwwzUNQXe2MzzdvVo+hLYXvP88SbgAt2q9F7jPOHW3eT6HvwOmordJQGQ387sQuF86yj0ltCO4/b3TMgu5VLjrPHU8' +
      'GsBpuJO4J7TVuWy4Erj4ORU9crgsvI+8c8CHuEq6kb0oNIq4pzqCvPs0j7jlLb26Y7GbuC0yqTWvuqe4Q8CiOAM8qLhgNEc9ITmpuIs8uThBuLm4g60pP/U+' +
      'vbhWQCA9PDTOuDI6O7WbtdW4eMDSuIa867jHufU4/rxYuaM4T7wUwFm5lb78uPQ+d7k+QD8vzzx7uUo/Zbd+v4m5ezcoQJ+8q7n5s1Wxqb7Eubq5fT3lNvS5' +
      'CbgNwDM9ELq8wEq5HjQtuse4h7b8MUC6urz7OD5AQbqBM260WzhHuqo2QzjeKl+6K7CgPGa33brIvDg2BTgBuzM7EixivQu7MTKcv+GrD7tBufw2ObQVu3Gy' +
      '5r8avTu78jYFNuo8QrvsviY/ES2DuyO8CLq7vLq7RT7xueO4wLsvPOS1JkDAu12xQLzDOc27xzx9PD0/6buCPOav6TXwu8m40rPhPPe7oDzdOiM4JbwetaW7' +
      'LEAmvMk0ljs0vXC8Ib7Bvn+3e7wwPwy8qjmDvE+9ObYSs528EDXWuQ+8pLwOPFVAcjWpvJC0SjipOLa8mTinuag8wrwXKPqtIbTmvPq6bD5zvUW9aLfxu8e2' +
      'dL1AwII4ALOZve4suDSpwJq9YbRCQNaur72KPSc9WLu+vSQ4JLvuI8a9EzqUvx872L0yQM4xG7DivRW9wbx4Ouu9pDo9MgW4E76steQwkrspvhc8wL4BuzK+' +
      'abxrPWY8N77bMvc7y7BkvpW9pDTVvaG+kTOYPQ88s75zuAu0xDS6voawzDVAP8e+67tWOwO02L6BNjIuOTg2v9y9mikPPIa/FD0bMRo9n7+otZ+7XL7rv608' +
      'Q7KYvfK/t7UNvw0kbcAEPfK5NzFwwAGtXrqUPIPAlzyMO/Mvh8BqIhc8bLyIwEO9E7iFtsrA+y/ptY23GMFftiQ5cDc=',
  },
  2: {
    checksum: 0x7a0f9cd9,
    base64:
      'jSFPOIUnwDwFKAHA1SpcLwQsxz5kLKq7yyzutNIuIzpzMLA9mTC/vd4w1LkNMYE1lTFwQZkx66xjMrPAkjLLwtYy+TtaM/C3/jOyvCI0iziONMcwkTTfvtU0' +
      'VrTmNIlAVjX8PGI1ZrvSNZE/ADZcOk82Pj5iNnG5aDbaNX42RKnxNo/BCjeovYw3DsCnNye36zctPB04rTgwOFqzPziIvEM4CzHCOOq65DhkPR05nDokObi+' +
      'KTnXuDc56DVKOUurUjlwQpI5yT7cOSe14zkrQPY5c739OcjA/zkdQSU6ajwrOsw4TjqfMHU6P7zMOkW66jovuCU73782O/+uRDvUOks7wzVMO7M9/ztYvhU8' +
      'XbUdPMU4MTxELzU88rw9PDU/PzyNPFo8X7tiPPu4czwYwrw87q+/PHo1wzzbOtY8i0D+PN89IT24wCY9mLYxPbA4ND13v0w9rr1jPewuaT3XuXM9PryIPX48' +
      '2T3eQeU9NbL5PXY//j1HOgc+SDZaPgy4dj67PZA+ib6QPq0rpj7Xurw+8bzvPhg8Lj8pOTo/wrNBPxY1YT8nwI0/vEDEP8u49T96wQRAMD0HQBA/DEAjvBJA' +
      '2CoxQC2+S0D/OllAFzdzQJG0sUDCuQJBLj0JQZkvFEHMvEZBSDllQQ5Ab0HHv3dBgLZsQn67bEIlPG9C9i2NoU+4hafAvAWoAUDVqlyvBKzHvmSsqjvLrO40' +
      '0q4junOwsL2ZsL893rDUOQ2xgbWVsXDBmbHrLGOys0CSsstC1rL5u1qz8Df+s7I8IrSLuI60x7CRtN8+1bRWNOa0icBWtfy8YrVmO9K1kb8Atly6T7Y+vmK2' +
      'cTlottq1frZEKfG2j0EKt6g9jLcOQKe3Jzfrty28HbituDC4WjM/uIg8Q7gLscK46jrkuGS9HbmcuiS5uD4pudc4N7notUq5SytSuXDCkrnJvty5JzXjuSvA' +
      '9rlzPf25yED/uR3BJbpqvCu6zLhOup+wdbo/PMy6RTrqui84JbvfPza7/y5Eu9S6S7vDtUy7s73/u1g+FbxdNR28xbgxvESvNbzyPD28Nb8/vI28WrxfO2K8' +
      '+zhzvBhCvLzuL7+8erXDvNu61ryLwP68370hvbhAJr2YNjG9sLg0vXc/TL2uPWO97K5pvdc5c70+PIi9frzZvd7B5b01Mvm9dr/+vUe6B75Itlq+DDh2vru9' +
      'kL6JPpC+raumvtc6vL7xPO++GLwuvym5Or/CM0G/FrVhvydAjb+8wMS/yzj1v3pBBMAwvQfAEL8MwCM8EsDYqjHALT5LwP+6WcAXt3PAkTSxwMI5AsEuvQnB' +
      'ma8Uwcw8RsFIuWXBDsBvwcc/d8GANmzCfjtswiW8b8L2rQ==',
  },
};
